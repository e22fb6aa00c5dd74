//! The fuzz targets as property tests: random bytes, and good inputs with some of their bytes
//! changed, which come further in.

use crate::support::fixture;
use kiln_tests::fuzz;
use proptest::prelude::*;
use std::fs;

/// Cases of what takes microseconds, and of what writes files.
const MANY: u32 = 400;
const FEW: u32 = 48;

/// Changes to a good input: where, in 1/65536 of its length, and to what; then where it is cut off.
#[derive(Debug, Clone)]
struct Damage {
    bytes: Vec<(u16, u8)>,
    keep: u16,
}

fn damage(most: usize) -> impl Strategy<Value = Damage> {
    let bytes = prop::collection::vec((any::<u16>(), any::<u8>()), 0..most);
    let keep = prop_oneof![3 => Just(u16::MAX), 1 => any::<u16>()];
    (bytes, keep).prop_map(|(bytes, keep)| Damage { bytes, keep })
}

impl Damage {
    /// `within`: only so many bytes at the start are changed.
    fn of(&self, good: &[u8], within: usize) -> Vec<u8> {
        let mut bytes = good.to_vec();
        let range = within.min(bytes.len());
        for (at, value) in &self.bytes {
            let at = (usize::from(*at) * range) >> 16;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = *value;
            }
        }
        let keep = (bytes.len() * (usize::from(self.keep) + 1)) >> 16;
        bytes.truncate(keep);
        bytes
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

const REQUEST: &[u8] = br#"{"model":"m","messages":[{"role":"system","content":"Be brief."},
    {"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,aGk=",
    "detail":"low"}},{"type":"text","text":"\ud83d\udd25?"}]}],"temperature":0.5,"top_p":1,"n":2,
    "logit_bias":{"7":-1.5},"stop":["a","b"],"seed":-3,"stream":true,"tools":[{"type":"function",
    "function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto",
    "response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{}}}}"#;

const TEMPLATE: &[u8] = b"{%- for m in messages -%}{{ m['role'] | upper }}: {% if m.content is string \
    %}{{ m.content.strip() }}{% else %}{% for p in m.content if p.type == 'text' %}{{ p.text[:9] }}\
    {% endfor %}{% endif %}{{ loop.index * 3 }}{% endfor %}{% macro a(x) %}{{ x ~ 'b' }}{% endmacro %}\
    {{ a(1) }}{{ range(9) | list | join(',') }}{{ raise_exception('no') if false }}";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(MANY))]

    #[test]
    fn any_bytes_as_a_picture(bytes in bytes(600)) {
        fuzz::data_url_image(&bytes);
    }

    #[test]
    fn damaged_pictures(damage in damage(6), which in 0usize..3) {
        let files = ["rgb.png", "rgb.jpg", "alpha.webp"];
        let good = fs::read(fixture("processors/inputs").join(files[which])).unwrap();
        fuzz::data_url_image(&damage.of(&good, usize::MAX));
    }

    #[test]
    fn any_text_as_a_data_url(kind in ".{0,12}", content in ".{0,60}") {
        fuzz::data_url_image(format!("data:{kind};base64,{content}").as_bytes());
    }

    #[test]
    fn any_bytes_as_a_request(bytes in bytes(300)) {
        fuzz::request_json(&bytes);
    }

    #[test]
    fn damaged_requests(damage in damage(4)) {
        fuzz::request_json(&damage.of(REQUEST, usize::MAX));
    }

    #[test]
    fn any_tokens_as_text(bytes in bytes(200)) {
        fuzz::utf8_stream(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(FEW))]

    #[test]
    fn any_bytes_as_weights(bytes in bytes(400)) {
        fuzz::safetensors_header(&bytes);
    }

    #[test]
    fn damaged_headers_of_weights(damage in damage(4)) {
        let good = fs::read(fixture("checkpoints/text-llama/model.safetensors")).unwrap();
        let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        fuzz::safetensors_header(&damage.of(&good, 8 + header));
    }

    #[test]
    fn damaged_chat_templates(damage in damage(3)) {
        fuzz::chat_template(&damage.of(TEMPLATE, usize::MAX));
    }
}

/// The good inputs that are damaged above are good.
#[test]
fn what_is_damaged_was_good() {
    kiln::check::chat_request(REQUEST).unwrap();
    let whole = Damage {
        bytes: vec![],
        keep: u16::MAX,
    };
    assert_eq!(whole.of(REQUEST, usize::MAX), REQUEST);
    let good = fs::read(fixture("checkpoints/text-llama/model.safetensors")).unwrap();
    fuzz::safetensors_header(&good);
    fuzz::chat_template(TEMPLATE);
}
