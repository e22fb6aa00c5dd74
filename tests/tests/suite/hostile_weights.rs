//! Weight files that lie: each is one change away from a good one, and each is refused with an
//! error that names the file or the tensor. Nothing panics, and no file outside is opened.

use crate::broken::{Copy, INDEX, WEIGHTS, assert_a_good_one_loads, split, weights};
use safetensors::Dtype;
use serde_json::{Value, json};

const LLAVA: &str = "llava-clip-llama";
const SHARDED: &str = "llava-clip-llama-sharded";
const TENSOR: &str = "language_model.model.layers.1.mlp.down_proj.weight";

#[test]
fn weight_files_that_contradict_themselves() {
    type Change = fn(&Copy);
    let changes: [(&str, Change); 9] = [
        ("empty", |copy| copy.write(WEIGHTS, [])),
        ("cut in the header", |copy| {
            copy.write(WEIGHTS, &copy.read(WEIGHTS)[..100])
        }),
        ("cut in the data", |copy| {
            let bytes = copy.read(WEIGHTS);
            copy.write(WEIGHTS, &bytes[..bytes.len() - 1]);
        }),
        ("a header longer than the file", |copy| {
            let mut bytes = copy.read(WEIGHTS);
            let length = bytes.len() as u64;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            copy.write(WEIGHTS, bytes);
        }),
        ("a header longer than any memory", |copy| {
            let mut bytes = copy.read(WEIGHTS);
            bytes[..8].fill(0xff);
            copy.write(WEIGHTS, bytes);
        }),
        ("a header that is no JSON", |copy| {
            let bytes = copy.read(WEIGHTS);
            copy.write(WEIGHTS, weights(b"{\"a\": nonsense", split(&bytes).1));
        }),
        ("a tensor behind the end", |copy| {
            copy.edit_header(|header| header[TENSOR]["data_offsets"][1] = json!(1u64 << 40));
        }),
        ("a tensor that ends before it begins", |copy| {
            copy.edit_header(|header| header[TENSOR]["data_offsets"] = json!([64, 0]));
        }),
        ("a shape whose product overflows", |copy| {
            copy.edit_header(|header| header[TENSOR]["shape"] = json!([1u64 << 40, 1u64 << 40]));
        }),
    ];
    for (what, change) in changes {
        let copy = Copy::of(LLAVA);
        change(&copy);
        copy.refused(what, &[WEIGHTS]);
    }
    let copy = Copy::of(LLAVA);
    copy.remove(WEIGHTS);
    copy.refused("no weights", &[WEIGHTS, INDEX]);
    assert_a_good_one_loads();
}

#[test]
fn tensors_that_do_not_fit_the_config() {
    let copy = Copy::of(LLAVA);
    copy.edit_tensors(|tensors| drop(tensors.remove(TENSOR)));
    // The name as the model asks for it: its own, without the prefixes of the file's layout.
    copy.refused("missing", &["layers.1.mlp.down_proj.weight", "missing"]);

    let copy = Copy::of(LLAVA);
    copy.edit_tensors(|tensors| {
        let mut twin = tensors.remove(TENSOR).unwrap();
        twin.shape.reverse();
        tensors.insert(TENSOR.to_owned(), twin);
    });
    copy.refused("transposed", &[TENSOR, "[56, 32]", "[32, 56]"]);

    for (name, dtype, width) in [("I64", Dtype::I64, 8), ("U8", Dtype::U8, 1)] {
        let copy = Copy::of(LLAVA);
        copy.edit_tensors(|tensors| {
            let stored = tensors.get_mut(TENSOR).unwrap();
            stored.dtype = dtype;
            stored.data = vec![0; stored.shape.iter().product::<usize>() * width];
        });
        copy.refused("type", &[TENSOR, name]);
    }

    for extra in [
        "language_model.model.layers.2.input_layernorm.weight",
        "secret.weight",
    ] {
        let copy = Copy::of(LLAVA);
        copy.edit_tensors(|tensors| {
            let twin = tensors["multi_modal_projector.linear_1.bias"].clone();
            tensors.insert(extra.to_owned(), twin);
        });
        copy.refused("surplus", &[extra]);
    }

    // Two layouts of names for one tensor.
    let copy = Copy::of(LLAVA);
    copy.edit_tensors(|tensors| {
        let twin = tensors[TENSOR].clone();
        tensors.insert(format!("model.{}", TENSOR.replace(".model.", ".")), twin);
    });
    copy.refused("twice", &[TENSOR]);
    assert_a_good_one_loads();
}

#[test]
fn an_index_can_neither_lie_nor_leave_the_folder() {
    let shard = "model-00002-of-00003.safetensors";
    let copy = Copy::of(SHARDED);
    copy.remove(shard);
    copy.refused("a shard is missing", &[shard]);

    for path in [
        format!("../{shard}"),
        format!("./{shard}"),
        "/etc/passwd".to_owned(),
        "..".to_owned(),
        String::new(),
        "sub\\..\\file".to_owned(),
        "nul\0byte".to_owned(),
    ] {
        let copy = Copy::of(SHARDED);
        let outside = copy.path().parent().unwrap().join(shard);
        assert!(!outside.exists());
        copy.edit(INDEX, |index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            *map.values_mut().next().unwrap() = Value::from(path.clone());
        });
        copy.refused(&format!("{path:?}"), &["plain file name"]);
    }

    let copy = Copy::of(SHARDED);
    copy.edit(INDEX, |index| {
        index["weight_map"]["not.there"] = json!(shard)
    });
    copy.refused("a tensor that is not in its shard", &["not.there", shard]);

    for index in ["[]", "{", "{\"weight_map\": {\"a\": 1}}", "{}", ""] {
        let copy = Copy::of(SHARDED);
        copy.write(INDEX, index);
        copy.refused(&format!("index {index:?}"), &[INDEX]);
    }
    assert_a_good_one_loads();
}
