//! The facts in the words, the sheet's bounds, and that the sheet shows the tensors' own pixels.

use super::*;
use kiln_engine::{Checkpoint, LoadedModel, ModelOptions};
use kiln_registry::{DecodeLimits, HostTensor, Registry, Tokenizer};
use std::path::PathBuf;
use std::sync::Arc;

fn load(checkpoint: &str, images: usize) -> LoadedModel {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/checkpoints")
        .join(checkpoint);
    let options = ModelOptions {
        limit_mm_per_prompt: MediaCounts::new().with(MODALITY, images),
        ..ModelOptions::default()
    };
    let registry = Arc::new(Registry::collect().unwrap());
    let checkpoint = Checkpoint::open(folder).unwrap();
    LoadedModel::load(registry, &checkpoint, &options, &|_, _| {}).unwrap()
}

/// A PNG whose pixels all differ from their neighbours.
fn png(width: u32, height: u32) -> (String, Bytes) {
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([
            (x * 7 % 251) as u8,
            (y * 5 % 241) as u8,
            ((x + y) * 3 % 239) as u8,
        ])
    });
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    (
        format!("folder/{width}x{height}.png"),
        bytes.into_inner().into(),
    )
}

fn assert_contains(words: &str, facts: &[&str]) {
    for fact in facts {
        assert!(words.contains(fact), "`{fact}` is not in\n{words}");
    }
}

const CROPPED: &str = "llava-clip-llama";
const TILED: &str = "llava-next-clip-mistral";

#[test]
fn a_cropped_picture_in_words() {
    let inspection = inspect(load(CROPPED, 1).pipeline(), &[png(448, 336)]).unwrap();
    let facts = [
        "folder/448x336.png",
        "PNG",
        "448x336",
        "resized to 37x28 (bicubic)",
        "cropped to the 28x28",
        "of the picture is cut off",
        "pixel_values f32 [1, 3, 28, 28]",
        "1 view of 28x28, 4x4 patches of 7x7",
        "16 tokens: one for each patch (an image takes at most 16)",
        "% of the context of 512",
        "[<image> x 16]",
        QUESTION,
    ];
    assert_contains(&inspection.words(), &facts);
}

#[test]
fn a_tiled_picture_in_words() {
    let inspection = inspect(load(TILED, 1).pipeline(), &[png(640, 480)]).unwrap();
    let facts = [
        "whole picture resized to 28x28",
        "its shape changes: 1.33:1 to 1.00:1",
        "fitted into 84x56",
        "padded with black: ",
        "cut into 3x2 tiles of 28x28",
        "all of the picture",
        "pixel_values f32 [1, 7, 3, 28, 28]",
        "image_sizes i64 [1, 2]",
        "7 views of 28x28",
        "16 for the whole picture",
        "8 for the ends of their rows",
    ];
    assert_contains(&inspection.words(), &facts);
    assert!(matches!(inspection.items[0].layout, Layout::Tiles { .. }));
}

#[test]
fn the_sheet_shows_the_tensors_pixels() {
    for checkpoint in [CROPPED, TILED] {
        let loaded = load(checkpoint, 2);
        let images = [png(90, 61), png(300, 500)];
        let inspection = inspect(loaded.pipeline(), &images).unwrap();
        let (sheet, placed) = inspection.draw();
        let mut probes = 0;
        for (index, (_, bytes)) in images.iter().enumerate() {
            let item = loaded.pipeline().decode_item(MODALITY, bytes).unwrap();
            let registry = Registry::collect().unwrap();
            let mapper = registry
                .mapper(loaded.pipeline().entry(), MODALITY)
                .unwrap();
            let tensors = mapper(loaded.pipeline().context(), &item).unwrap();
            let pixels = tensors.get(PIXELS).unwrap();
            let values = pixels.as_f32().unwrap();
            let config = ImageProcessorConfig::from_context(loaded.pipeline().context()).unwrap();
            for view in placed.iter().filter(|view| view.item == index) {
                // 28 pixels a side, patches of 7: 3, 10 and 24 are not under a line.
                for (x, y) in [(3, 3), (10, 24), (24, 10)] {
                    let at = |c: usize| ((view.view * 3 + c) * 28 + y) * 28 + x;
                    let expected = [0, 1, 2].map(|c| level(&config, c, values[at(c)]));
                    let middle = |n: usize| (n as i64 * view.enlarged + view.enlarged / 2) as u32;
                    let (left, top) = (view.spot.x as u32, view.spot.y as u32);
                    let shown = sheet.get_pixel(left + middle(x), top + middle(y)).0;
                    assert_eq!(shown, expected, "{checkpoint} {view:?} {x},{y}");
                    probes += 1;
                }
            }
        }
        let tiles = inspection.items.iter().map(|i| i.views.pictures.len());
        assert_eq!(probes, 3 * tiles.sum::<usize>(), "{checkpoint}");
    }
}

struct NoTokens;
impl Tokenizer for NoTokens {
    fn encode(&self, _: &str, _: bool) -> kiln_registry::Result<Vec<u32>> {
        Ok(vec![])
    }
    fn token_to_id(&self, _: &str) -> Option<u32> {
        None
    }
    fn id_to_token(&self, _: u32) -> Option<String> {
        None
    }
}

/// A picture for a tower of 336 pixels, with so many tokens.
fn full_size(processor: serde_json::Value, picture: RgbImage8, tokens: usize) -> Inspection {
    let config = serde_json::json!({"vision_config": {"patch_size": 14}});
    let limits = MediaCounts::new();
    let ctx = InputContext::new(config, processor, Arc::new(NoTokens), limits, 4096);
    let tensors = map_rgb(&ImageProcessorConfig::from_context(&ctx).unwrap(), &picture).unwrap();
    let range = PlaceholderRange {
        modality: MODALITY.to_owned(),
        item: 0,
        offset: 5,
        length: tokens,
        embed_mask: None,
    };
    let file = FileFacts {
        format: "JPEG".to_owned(),
        bytes: 31_337,
        turned: true,
    };
    let segment = |range, positions, text: &str| prompt::Segment {
        range,
        positions,
        text: text.to_owned(),
    };
    let prompt = PromptLayout {
        note: "a test".to_owned(),
        length: tokens + 25,
        context: 4096,
        segments: vec![
            segment(None, 0..5, "<s>USER: "),
            segment(Some(0), range.range(), &format!("[<image> x {tokens}]")),
            segment(None, tokens + 5..tokens + 25, "\\nWhat is it? ASSISTANT:"),
        ],
    };
    let item = Item::new(&ctx, "cat.jpg".to_owned(), file, picture, &tensors, range);
    Inspection {
        items: vec![item],
        prompt,
        max_tokens: Some(2880),
    }
}

#[test]
fn a_tower_of_full_size_fits_on_the_sheet() {
    let picture = |width: u32, height: u32| {
        let (_, bytes) = png(width, height);
        let item = kiln_image::decode(&bytes, &DecodeLimits::default()).unwrap();
        RgbImage8::from_item(&item).unwrap()
    };
    let side = serde_json::json!({"height": 336, "width": 336});
    let tiled = serde_json::json!({
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": side,
    });
    let padded = serde_json::json!({
        "image_processor_type": "LlavaImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": side,
        "do_pad": true,
    });
    for (processor, size, tokens, fact) in [
        (
            &tiled,
            (640, 480),
            576 + 36 * 49,
            "36 for the ends of their rows",
        ),
        (
            &tiled,
            (300, 1200),
            576 + 72 * 19,
            "72 for the ends of their rows",
        ),
        (
            &padded,
            (900, 300),
            576,
            "with the colour #7a7468: 300 px above, 300 px below",
        ),
        (&padded, (900, 301), 500, "500 tokens (an image"),
    ] {
        let inspection = full_size(processor.clone(), picture(size.0, size.1), tokens);
        assert_contains(
            &inspection.words(),
            &[fact, "all of the picture", "turned upright"],
        );
        let (sheet, placed) = inspection.draw();
        assert!(
            (800..2000).contains(&sheet.height()),
            "{size:?}: {}",
            sheet.height()
        );
        for view in placed {
            assert_eq!(
                (view.enlarged, view.shrunk > 2),
                (1, false),
                "{size:?} {view:?}"
            );
            assert!(view.spot.right() <= 1112, "{size:?} {view:?}");
        }
    }
}

#[test]
fn tensors_of_another_kind_are_named_and_not_drawn() {
    let processor = serde_json::json!({"image_processor_type": "CLIPImageProcessor"});
    let picture = RgbImage8::filled(Size::new(60, 40), [9; 3]).unwrap();
    let mut inspection = full_size(processor.clone(), picture.clone(), 7);
    let limits = MediaCounts::new();
    let ctx = InputContext::new(
        serde_json::json!({}),
        processor,
        Arc::new(NoTokens),
        limits,
        64,
    );
    let patches = HostTensor::f32([1, 6, 588], vec![0.0; 6 * 588]).unwrap();
    let tensors = NamedTensors::new().with("flat_patches", patches);
    let item = inspection.items.remove(0);
    let range = PlaceholderRange {
        embed_mask: Some(vec![true, true, true, false, true, true, true]),
        ..item.range
    };
    let item = Item::new(&ctx, item.name, item.file, picture, &tensors, range);
    inspection.items.push(item);
    let facts = [
        "the model's own",
        "flat_patches f32 [1, 6, 588]",
        "not drawn: there is no `pixel_values`",
        "6 tokens (an image",
        "1 of the positions between them: separators",
    ];
    assert_contains(&inspection.words(), &facts);
    let (sheet, placed) = inspection.draw();
    assert!(
        placed.is_empty() && sheet.height() > 400,
        "{:?}",
        sheet.dimensions()
    );
}

#[test]
fn extreme_pictures_have_sane_sheets() {
    for checkpoint in [CROPPED, TILED] {
        let loaded = load(checkpoint, 1);
        for (width, height) in [(1, 1), (1, 4000), (4000, 1), (2000, 1500)] {
            let inspection = inspect(loaded.pipeline(), &[png(width, height)]).unwrap();
            let sheet = inspection.sheet();
            let place = format!("{checkpoint} {width}x{height}: {:?}", sheet.dimensions());
            assert_eq!(sheet.width(), 1136, "{place}");
            assert!((200..2400).contains(&sheet.height()), "{place}");
        }
    }
}

#[test]
fn a_cut_off_share_is_never_rounded_to_all_or_nothing() {
    let words = inspect(load(CROPPED, 1).pipeline(), &[png(1, 3000)])
        .unwrap()
        .words();
    assert_contains(&words, &["99.97% of the picture is cut off"]);
}

#[test]
fn what_can_not_be_inspected_is_said() {
    let error = |checkpoint: &str, images: &[(String, Bytes)]| {
        let error = inspect(load(checkpoint, 1).pipeline(), images)
            .err()
            .unwrap();
        format!("{error:#}")
    };
    assert!(error("text-llama", &[png(2, 2)]).contains("takes no image input"));
    assert!(error(CROPPED, &[]).contains("no picture to inspect"));
    let damaged = ("broken.png".to_owned(), Bytes::from_static(b"no picture"));
    assert!(error(CROPPED, &[damaged]).contains("broken.png"));
    assert!(error(CROPPED, &[png(2, 2), png(2, 2)]).contains("--limit-mm-per-prompt"));
}
