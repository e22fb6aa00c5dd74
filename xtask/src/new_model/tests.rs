//! A scaffold in a copy of the files that it reads, and back. The names are ones that no model has:
//! the copies list whatever the tree has.

use super::*;
use crate::linked;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A folder of this process's own, gone when the value is.
struct Tree(PathBuf);

impl Tree {
    /// The lists, the crates that a new one may be like, and models/nn.
    fn new(test: &str) -> Self {
        let tree = Self::empty(test);
        let folder = &tree.0;
        for file in [
            "Cargo.toml",
            "README.md",
            "rustfmt.toml",
            "server/Cargo.toml",
            linked::FILE,
        ] {
            copy(&crate::root().join(file), &folder.join(file));
        }
        // All of them: the lists are made of the crates.
        copy_all(&crate::root().join("models"), &folder.join("models"));
        let at = "xtask/templates/parity";
        copy_all(&crate::root().join(at), &folder.join(at));
        tree
    }

    fn empty(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("kiln-xtask-{}-{test}", std::process::id()));
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.0, &mut files);
        files
    }

    fn make(&self, name: &str, like: Like) -> Result<Made> {
        scaffold(&self.0, name, Some(like), &[], None)
    }

    fn error(&self, name: &str, like: Option<Like>, config: Option<&Value>) -> String {
        let before = self.files();
        let error = scaffold(&self.0, name, like, &[], config).err();
        assert!(self.files() == before, "{name}: something was left behind");
        error
            .unwrap_or_else(|| panic!("{name} was not refused"))
            .to_string()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &to);
        } else {
            copy(&entry.path(), &to);
        }
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.insert(path.clone(), vec![]);
            collect(&path, files);
        } else {
            let content = fs::read(&path).unwrap();
            files.insert(path, content);
        }
    }
}

/// The lines that a text has and another has not.
fn added(before: &str, after: &str) -> Vec<String> {
    let before: Vec<_> = before.lines().collect();
    let after = after.lines().filter(|line| !before.contains(line));
    after.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_scaffold_adds_its_lines_and_takes_every_byte_back() {
    for (name, like) in [
        ("made-up-vl", Like::Llava),
        // Before and behind all others.
        ("a0-made-up", Like::LlavaNext),
        ("zz-made-up2", Like::Text),
    ] {
        let tree = Tree::new(name);
        let before = tree.files();
        let lists = ["Cargo.toml", "server/Cargo.toml", linked::FILE, "README.md"];
        let texts = lists.map(|file| tree.read(file));
        let made = tree.make(name, like).unwrap();
        let architecture = &made.name.architecture;
        let new = |at: usize| added(&texts[at], &tree.read(lists[at]));
        assert_eq!(
            new(0),
            [
                format!("\"models/{name}\","),
                format!("kiln-{name} = {{ path = \"models/{name}\" }}")
            ]
        );
        let server = new(1);
        for line in [
            format!("{name} = [\"dep:kiln-{name}\"]"),
            format!("kiln-{name} = {{ workspace = true, optional = true }}"),
        ] {
            assert!(server.contains(&line), "{server:?}");
        }
        assert!(
            server
                .iter()
                .any(|line| line.contains(&format!("\"kiln-{name}?/cuda\"")))
        );
        let krate = format!("kiln_{}", name.replace('-', "_"));
        assert_eq!(new(2), [format!("{name:?} {krate} [{architecture:?}];")]);
        let modalities = if like == Like::Text {
            "text"
        } else {
            "text, image"
        };
        let row = format!(
            "| `{name}` | `{architecture}` | {modalities} | as `{}` |",
            like.folder()
        );
        assert_eq!(new(3), [row]);

        let again = tree.make(name, like).err().unwrap().to_string();
        assert!(again.contains("is there already"), "{again}");
        unscaffold(&tree.0, name, false).unwrap();
        assert!(tree.files() == before, "{name}: not the same bytes");
    }
}

#[test]
fn a_crate_has_its_own_names_and_documentation() {
    let tree = Tree::new("names");
    for (name, like, camel) in [
        ("made-up-vl", Like::Llava, "MadeUpVl"),
        ("made-up-tiles", Like::LlavaNext, "MadeUpTiles"),
        ("made-up-lm", Like::Text, "MadeUpLm"),
    ] {
        tree.make(name, like).unwrap();
        let lib = tree.read(&format!("models/{name}/src/lib.rs"));
        assert!(lib.starts_with(&format!("//! {camel} for Kiln")), "{lib}");
        for section in [
            "Architecture",
            "Inputs",
            "Token layout",
            "Weights",
            "Source",
        ] {
            assert!(lib.contains(&format!("//! # {section}\n")), "{section}");
        }
        assert!(lib.contains(&format!("pub struct {camel}")), "{lib}");
        for old in [
            "struct Llava",
            "LlavaForConditional",
            "LlavaNext",
            "CausalLm ",
            "input by LLaVA",
        ] {
            assert!(!lib.contains(old), "{old} in {name}");
        }
        let test = tree.read(&format!("models/{name}/tests/tiny/main.rs"));
        let krate = name.replace('-', "_");
        assert!(test.contains(&format!("use kiln_{krate} as _;")));
        let manifest = tree.read(&format!("models/{name}/Cargo.toml"));
        assert!(
            manifest.contains(&format!("name = \"kiln-{name}\"")),
            "{manifest}"
        );
        assert!(
            manifest.contains("\ntempfile.workspace = true\n"),
            "{manifest}"
        );
    }
}

#[test]
fn what_is_no_name_or_is_taken_is_refused() {
    let tree = Tree::new("refused");
    for name in [
        "", "Shiny", "shiny_vl", "-a", "a-", "a--b", "1st", "../x", "a b", "ä",
    ] {
        let error = tree.error(name, None, None);
        assert!(error.contains("is no name"), "{name}: {error}");
    }
    for name in ["nn", "all-models", "cuda", "engine", "video", "audio"] {
        let error = tree.error(name, None, None);
        assert!(error.contains("has a meaning"), "{name}: {error}");
    }
    for name in ["llava", "llava-next", "text"] {
        let error = tree.error(name, None, None);
        assert!(error.contains("is there already"), "{name}: {error}");
    }
    assert!(tree.error(&"a".repeat(41), None, None).contains("shorter"));
}

#[test]
fn only_an_untouched_scaffold_is_removed() {
    let tree = Tree::new("removal");
    for name in ["llava", "llava-next", "text"] {
        for force in [false, true] {
            let error = unscaffold(&tree.0, name, force).unwrap_err().to_string();
            assert!(error.contains("was not made by"), "{error}");
        }
    }
    assert!(unscaffold(&tree.0, "nn", true).is_err());
    assert!(unscaffold(&tree.0, "none", true).is_err());
    let before = tree.files();
    tree.make("made-up", Like::Text).unwrap();
    for edited in ["src/lib.rs", "Cargo.toml", "src/own.rs"] {
        let path = tree.0.join("models/made-up").join(edited);
        let old = fs::read_to_string(&path).ok();
        let text = old.clone().unwrap_or_default() + "# work\n";
        fs::write(&path, text).unwrap();
        let error = unscaffold(&tree.0, "made-up", false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--force"), "{edited}: {error}");
        match old {
            Some(old) => fs::write(&path, old).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    // What the crate's own script writes is no edit.
    let written = tree.0.join("models/made-up/tests/parity/config.json");
    fs::write(written, "{}").unwrap();
    unscaffold(&tree.0, "made-up", false).unwrap();
    tree.make("made-up", Like::Text).unwrap();
    fs::write(tree.0.join("models/made-up/src/lib.rs"), "edited").unwrap();
    unscaffold(&tree.0, "made-up", true).unwrap();
    assert!(tree.files() == before);
}

#[test]
fn a_checkpoint_gives_the_tiny_test_its_switches() {
    let real = json!({
        "architectures": ["MadeUpGlossForConditionalGeneration"],
        "image_grid_pinpoints": [[384, 768], [768, 384], [2304, 384], [384, 768]],
        "image_token_index": 151_646,
        "mm_scale": 0.5,
        "use-late-fusion": true,
        "model_type": "llava_next",
        "projector_hidden_act": "relu",
        "text_config": {
            "hidden_size": 3584, "model_type": "qwen2", "num_attention_heads": 28,
            "num_key_value_heads": 28, "rope_theta": 1e6, "tie_word_embeddings": true,
            "logit_scale": -2, "torch_dtype": "bfloat16",
        },
        "vision_config": {
            "hidden_size": 1152, "image_size": 384, "model_type": "siglip_vision_model",
        },
        "vision_feature_layer": -12,
    });
    let tree = Tree::new("from");
    let made = scaffold(&tree.0, "made-up-gloss", None, &[], Some(&real)).unwrap();
    assert_eq!(
        made.name.architecture,
        "MadeUpGlossForConditionalGeneration"
    );
    assert_eq!(made.like, Like::LlavaNext);
    let tiny = tree.read("models/made-up-gloss/tests/tiny/config.json");
    let tiny: Value = serde_json::from_str(&tiny).unwrap();
    assert_eq!(
        tiny["image_grid_pinpoints"],
        json!([[28, 56], [56, 28], [84, 28]])
    );
    assert_eq!(tiny["projector_hidden_act"], "relu");
    assert_eq!(tiny["model_type"], "made_up_gloss");
    assert_eq!(tiny["vision_feature_layer"], -2);
    assert_eq!(tiny["image_token_index"], 3);
    let text = &tiny["text_config"];
    assert_eq!(
        (&text["model_type"], &text["rope_theta"]),
        (&json!("qwen2"), &json!(1e6))
    );
    assert_eq!(
        (&text["hidden_size"], &text["num_key_value_heads"]),
        (&json!(32), &json!(4))
    );
    assert_eq!(tiny["vision_config"]["image_size"], 28);

    // Its own keys are fields, with its values; what models/nn reads, or nothing hangs on, is none.
    let config = tree.read("models/made-up-gloss/src/config.rs");
    for part in [
        "pub struct MadeUpGlossConfig",
        "pub mm_scale: f64,",
        "mm_scale: 0.5,",
        "#[serde(rename = \"use-late-fusion\")]",
        "use_late_fusion: true,",
        "pub text_config: OwnTextConfig,",
        "logit_scale: -2",
    ] {
        assert!(config.contains(part), "{part}: {config}");
    }
    for key in [
        "rope_theta",
        "dtype",
        "hidden_size",
        "vision_feature_layer",
        "pinpoints",
    ] {
        assert!(!config.contains(key), "{key}: {config}");
    }
    let script = tree.read("models/made-up-gloss/tests/parity.py");
    assert!(script.contains("MODEL_TYPE = \"llava_next\""), "{script}");

    let mut unknown = real.clone();
    unknown["text_config"]["model_type"] = "mamba".into();
    let error = tree.error("made-up-other", None, Some(&unknown));
    assert!(
        error.contains("no `mamba`") && error.contains("qwen2"),
        "{error}"
    );
    let mut unknown = real.clone();
    unknown["vision_config"]["model_type"] = "dino".into();
    assert!(
        tree.error("made-up-other", None, Some(&unknown))
            .contains("no `dino`")
    );
    assert!(
        tree.error("made-up-other", Some(Like::Text), Some(&real))
            .contains("--like")
    );
    let mut taken = real.clone();
    taken["architectures"] = json!(["LlavaNextForConditionalGeneration"]);
    let error = tree.error("made-up-other", None, Some(&taken));
    assert!(error.contains("is kiln_llava_next's"), "{error}");
    let mut misnamed = real;
    misnamed["architectures"] = json!(["no name\"]"]);
    assert!(
        tree.error("made-up-other", None, Some(&misnamed))
            .contains("is no name")
    );
}

#[test]
fn a_workspace_outside_the_tree_is_whole() {
    let tree = Tree::new("outside");
    fs::copy(crate::root().join("Cargo.lock"), tree.0.join("Cargo.lock")).unwrap();
    let before = tree.files();
    let outside = Tree::empty("outside-made");
    let folder = outside.0.join("deep/made-up-vl");
    let make = |name: &str, folder: &Path, config: Option<&Value>| {
        out_of_tree::scaffold(&tree.0, folder, name, Some(Like::Llava), &[], config)
    };
    make("made-up-vl", &folder, None).unwrap();
    assert!(tree.files() == before, "the tree was changed");
    let manifest = outside.read("deep/made-up-vl/Cargo.toml");
    let way = format!("../../../{}", tree.0.file_name().unwrap().display());
    for line in [
        "members = [\"made-up-vl\", \"server\"]".to_owned(),
        format!("kiln-nn = {{ path = \"{way}/models/nn\" }}"),
        format!("kiln = {{ path = \"{way}/server\", default-features = false }}"),
        format!("cubecl-llvm = {{ path = \"{way}/vendor/cubecl-llvm\" }}"),
        "kiln-made-up-vl = { path = \"made-up-vl\" }".to_owned(),
    ] {
        assert!(manifest.lines().any(|l| l == line), "{line}: {manifest}");
    }
    let main = outside.read("deep/made-up-vl/server/src/main.rs");
    assert!(main.contains("use kiln_made_up_vl as _;"), "{main}");
    let model = outside.read("deep/made-up-vl/made-up-vl/Cargo.toml");
    assert!(!model.contains("metadata"), "nothing removes it: {model}");
    let script = outside.read("deep/made-up-vl/made-up-vl/tests/parity.py");
    assert!(
        script.contains(&format!("../../{way}/xtask/python")),
        "{script}"
    );

    // What the crate's own tests read comes along.
    let tiles = outside.0.join("tiles");
    fs::create_dir_all(tree.0.join("tests/fixtures")).unwrap();
    let table = "tests/fixtures/next-tokens.tsv";
    fs::copy(crate::root().join(table), tree.0.join(table)).unwrap();
    out_of_tree::scaffold(
        &tree.0,
        &tiles,
        "made-up-tiles",
        Some(Like::LlavaNext),
        &[],
        None,
    )
    .unwrap();
    let layout = outside.read("tiles/made-up-tiles/src/layout.rs");
    assert!(
        layout.contains("\"../tests/fixtures/next-tokens.tsv\""),
        "{layout}"
    );
    assert!(tiles.join("made-up-tiles").join(table).exists());

    // What is refused leaves nothing behind.
    let other = outside.0.join("other");
    let taken = json!({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}});
    for (name, folder, config, word) in [
        ("made-up-vl", &folder, None, "is not empty"),
        ("llava", &other, None, "is one of Kiln's own"),
        ("Made Up", &other, None, "is no name"),
        ("made-up-vl", &other, Some(&taken), "is kiln_llava's"),
    ] {
        let error = make(name, folder, config).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
        assert!(!other.exists(), "{name}");
    }
}

#[test]
fn modalities_beside_images_bring_their_parts() {
    use Modality::{Audio, Image, Video};
    let tree = Tree::new("modalities");
    let before = tree.files();
    for (modalities, present, absent) in [
        (&[Image][..], &[][..], &["video", "audio"][..]),
        (&[Image, Video], &["video"], &["audio"]),
        (&[Audio, Image], &["audio"], &["video"]),
        (&[Image, Video, Audio], &["video", "audio"], &[]),
    ] {
        scaffold(&tree.0, "made-up-av", Some(Like::Llava), modalities, None).unwrap();
        let read = |file: &str| tree.read(&format!("models/made-up-av/{file}"));
        let (lib, test) = (read("src/lib.rs"), read("tests/tiny/main.rs"));
        let config: Value = serde_json::from_str(&read("tests/tiny/config.json")).unwrap();
        let manifest = read("Cargo.toml");
        for (names, there) in [(present, true), (absent, false)] {
            for name in names {
                for (text, words) in [
                    (&lib, format!("        .{name}({name}::SUPPORT)\n")),
                    (&lib, format!("mod {name};\n")),
                    (&lib, format!("kiln_{name}::MODALITY => ")),
                    (&test, format!("mod {name};\n")),
                    (&manifest, format!("kiln-{name}.workspace = true\n")),
                ] {
                    assert_eq!(text.contains(&words), there, "{words} in {modalities:?}");
                }
                let key = format!("{name}_token_index");
                assert_eq!(config.get(key).is_some(), there, "{name}");
            }
        }
        let folder = tree.0.join("models/made-up-av/tests/parity");
        assert_eq!(folder.exists(), present.is_empty());
        unscaffold(&tree.0, "made-up-av", false).unwrap();
        assert!(tree.files() == before, "{modalities:?}");
    }
    for (like, modalities, words) in [
        (Like::Llava, &[Image, Image][..], "named twice"),
        (Like::Llava, &[Audio], "add image"),
        (Like::LlavaNext, &[Video], "add image"),
        (Like::LlavaNext, &[Image, Video], "is like llava"),
        (Like::Text, &[Image], "takes no modality"),
    ] {
        let error = scaffold(&tree.0, "made-up-av", Some(like), modalities, None);
        let error = error.err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
        assert!(
            tree.files() == before,
            "{modalities:?}: something was left behind"
        );
    }
}

#[test]
fn a_checkpoints_audio_tower_is_shrunk() {
    let real = json!({
        "architectures": ["MadeUpSoundForConditionalGeneration"], "audio_token_id": 7,
        "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 1280, "num_hidden_layers": 32},
        "text_config": {"model_type": "qwen2"}, "vision_config": {"model_type": "clip_vision_model"},
    });
    let tree = Tree::new("audio");
    let modalities = [Modality::Image, Modality::Audio];
    scaffold(&tree.0, "made-up-sound", None, &modalities, Some(&real)).unwrap();
    let tiny = tree.read("models/made-up-sound/tests/tiny/config.json");
    let tiny: Value = serde_json::from_str(&tiny).unwrap();
    let audio = &tiny["audio_config"];
    assert_eq!(audio["model_type"], "qwen2_audio_encoder");
    assert_eq!(
        (&audio["d_model"], &audio["encoder_layers"]),
        (&json!(32), &json!(2))
    );
    assert_eq!(
        (&tiny["audio_token_index"], tiny.get("audio_token_id")),
        (&json!(5), None)
    );
    let own = tree.read("models/made-up-sound/src/config.rs");
    assert!(!own.contains("audio_"), "{own}");
    let mut unknown = real;
    unknown["audio_config"]["model_type"] = "wav2vec2".into();
    let error = tree.error("made-up-other", None, Some(&unknown));
    assert!(error.contains("no `wav2vec2`"), "{error}");
}
