//! Model and adapter folders: written, read back, merged, made from nothing.

mod common;

use std::path::Path;

use common::*;
use mgsd_compute::Dtype;
use mgsd_model::batch::Batch;
use mgsd_model::config::{Config, WeightDtype};
use mgsd_model::init::write_random;
use mgsd_model::linear::Adapter;
use mgsd_model::lora::LoraConfig;
use mgsd_model::merge::merge;
use mgsd_model::model::{Activations, Keep, Parts, Purpose, Qwen3Vl};
use mgsd_model::processor::Prompt;

fn root() -> std::path::PathBuf {
    roots().remove(0)
}

fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).expect("a folder").map(|item| item.expect("an entry").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn same_weights(left: &Qwen3Vl, right: &Qwen3Vl) {
    let (left, right) = (left.parameters(), right.parameters());
    assert_eq!(left.len(), right.len());
    for (l, r) in left.iter().zip(right) {
        assert_eq!((&l.name, &l.shape), (&r.name, &r.shape));
        assert_eq!(l.value.to_vec(), r.value.to_vec(), "{}", l.name);
    }
}

fn states(model: &Qwen3Vl, adapter: Adapter) -> Vec<f32> {
    let mut batch = Batch::new(&model.config);
    batch.push(&Prompt { ids: (1..40).collect(), images: Vec::new() }).expect("a good prompt");
    let mut acts = Activations::new(&model.config);
    model.forward(&batch, &mut acts, adapter, Keep::Nothing);
    acts.hidden().to_vec()
}

#[test]
fn a_saved_model_is_read_back_the_same_with_the_other_files_beside_it() {
    for name in ["tiny-qwen3vl", "tiny-qwen3vl-untied"] {
        let out = tempfile::tempdir().expect("a folder");
        let model = model(&root(), name);
        model.save(out.path()).expect("saves");
        same_weights(&model, &Qwen3Vl::load(out.path(), Purpose::Training).expect("loads"));
        assert_eq!(files(out.path()), files(&root().join(name)));
        let stored = arrays(out.path().join("model.safetensors"));
        assert_eq!(stored, arrays(root().join(name).join("model.safetensors")), "names, shapes and numbers");
    }
}

#[test]
fn a_saved_adapter_is_read_back_the_same_and_has_the_names_of_peft() {
    let out = tempfile::tempdir().expect("a folder");
    let mut model = model(&root(), "tiny-qwen3vl");
    let mut config = model.load_adapter(&root().join("training/lora_adapter")).expect("loads");
    assert_eq!((config.rank, config.alpha, config.targets.len()), (8, 16.0, 28));
    config.targets = LoraConfig::default().targets;
    model.save_adapter(out.path(), "tiny-qwen3vl", &config).expect("saves");
    assert_eq!(
        arrays(out.path().join("adapter_model.safetensors")),
        arrays(root().join("training/lora_adapter/adapter_model.safetensors"))
    );
    let settings = std::fs::read(out.path().join("adapter_config.json")).expect("settings");
    let settings: serde_json::Value = serde_json::from_slice(&settings).expect("JSON");
    assert_eq!(settings["r"], 8);
    assert_eq!(settings["lora_alpha"], 16);
    let leaves = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(settings["target_modules"], serde_json::json!(leaves));
    let before = states(&model, Adapter::On);
    model.load_adapter(out.path()).expect("loads what it wrote");
    assert_eq!(states(&model, Adapter::On), before);
    assert!(model.save(out.path()).expect_err("adapters would be lost").to_string().contains("merge"));
}

#[test]
fn a_fresh_adapter_changes_nothing_and_targets_choose_the_layers() {
    let mut model = model(&root(), "tiny-qwen3vl");
    let plain = states(&model, Adapter::Off);
    let count = |model: &mut Qwen3Vl, targets: &[&str]| {
        model.remove_lora();
        let targets = targets.iter().map(ToString::to_string).collect();
        model.add_lora(&LoraConfig { targets, ..LoraConfig::default() }, 1)
    };
    assert_eq!(count(&mut model, &["all-linear"]).expect("selects"), 28);
    assert_eq!(states(&model, Adapter::On), plain, "B is zero");
    let trained = model.parameters().iter().filter(|p| p.is_trainable()).count();
    assert_eq!(trained, 56);
    assert_eq!(count(&mut model, &["q_proj", "v_proj"]).expect("selects"), 8);
    assert_eq!(count(&mut model, &["model.visual.blocks.*.attn.qkv"]).expect("selects"), 4);
    assert_eq!(count(&mut model, &["layers.2.mlp.down_proj"]).expect("selects"), 1);
    assert!(count(&mut model, &["w_proj"]).expect_err("none").to_string().contains("w_proj"));
}

#[test]
fn merge_proves_itself_and_carries_all_files_along() {
    let out = tempfile::tempdir().expect("a folder");
    let merged = out.path().join("merged");
    let report = merge(&root().join("tiny-qwen3vl"), &root().join("training/lora_adapter"), &merged).expect("merges");
    assert_eq!(report.layers, 28);
    assert!(report.max_difference <= 1.5e-4 && report.max_difference > 0.0, "{report:?}");
    assert!(report.adapter_effect > 100.0 * report.max_difference, "{report:?}");
    assert_eq!(files(&merged), files(&root().join("tiny-qwen3vl")));
    assert_eq!(files(out.path()), ["merged"], "nothing temporary is left");
    let stored = arrays(root().join("training/lora_merged.safetensors"));
    let written = arrays(merged.join("model.safetensors"));
    for (name, expected) in stored.iter().filter(|(name, _)| written.contains_key(*name)) {
        assert_near(name, floats(&written, name), expected.as_f32().expect("floats"), 1e-6);
    }
    let again = merge(&root().join("tiny-qwen3vl"), &root().join("training/lora_adapter"), &merged);
    assert!(again.expect_err("it is there").to_string().contains("exists"));
}

#[test]
fn an_adapter_that_does_not_fit_the_base_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).expect("made");
    let stored = root().join("training/lora_adapter");
    let settings = std::fs::read_to_string(stored.join("adapter_config.json")).expect("settings");
    let mut weights = arrays(stored.join("adapter_model.safetensors"));
    let first = weights.keys().next().expect("a name").clone();
    let out = dir.path().join("out");
    let attempt = |settings: &str, weights: &Arrays| {
        std::fs::write(adapter.join("adapter_config.json"), settings).expect("written");
        mgsd_model::weights::write_arrays(&adapter.join("adapter_model.safetensors"), weights).expect("written");
        let error = merge(&root().join("tiny-qwen3vl"), &adapter, &out).expect_err("must be refused");
        assert_eq!(files(dir.path()), ["adapter"], "{error}");
        error.to_string()
    };
    assert!(attempt(&settings.replace("\"use_dora\": false", "\"use_dora\": true"), &weights).contains("use_dora"));
    // What PEFT begins by taking something off the base's weights would be added to the wrong ones.
    let begun = settings.replace("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"");
    assert!(
        begun != settings && attempt(&begun, &weights).contains("init_lora_weights"),
        "{}",
        attempt(&begun, &weights)
    );
    let called = settings.replace("\"alora_invocation_tokens\": null", "\"alora_invocation_tokens\": [1, 2]");
    assert!(called != settings);
    assert!(attempt(&called, &weights).contains("alora_invocation_tokens"));
    assert!(attempt(&settings.replace("LORA", "IA3"), &weights).contains("IA3"));
    let array = weights.remove(&first).expect("it was there");
    assert!(attempt(&settings, &weights).contains(&first), "half a pair");
    weights.insert(first.replace("layers.0", "layers.9"), array.clone());
    weights.insert(first.clone(), array.clone());
    assert!(attempt(&settings, &weights).contains("layers.9"));
    weights.remove(&first.replace("layers.0", "layers.9"));
    let cut = mgsd_model::weights::Array::f32(&[8, 64], array.as_f32().expect("floats")[..512].to_vec());
    weights.insert(first.clone(), cut);
    assert!(attempt(&settings, &weights).contains(&first), "a wrong shape");
}

#[test]
fn an_adapter_whose_settings_say_another_rank_or_other_layers_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let stored = root().join("training/lora_adapter");
    std::fs::copy(stored.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors"))
        .expect("copied");
    let settings = std::fs::read(stored.join("adapter_config.json")).expect("settings");
    let mut base = model(&root(), "tiny-qwen3vl");
    let mut load = |fields: serde_json::Value| {
        let mut settings: serde_json::Value = serde_json::from_slice(&settings).expect("JSON");
        settings.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        std::fs::write(dir.path().join("adapter_config.json"), settings.to_string()).expect("written");
        base.load_adapter(dir.path()).map_err(|error| error.to_string())
    };
    let six = ["v_proj", "o_proj", "up_proj", "gate_proj", "mlp.down_proj", "k_proj"];
    for (fields, words) in [
        (serde_json::json!({ "r": 4 }), ["rank 8", "r (4)"]),
        (
            serde_json::json!({ "rank_pattern": { "layers.1.self_attn.q_proj": 2 } }),
            ["layers.1.self_attn.q_proj", "rank_pattern"],
        ),
        (serde_json::json!({ "r": 4, "rank_pattern": { "q_proj": 8 } }), ["rank 8", "r (4)"]),
        (serde_json::json!({ "target_modules": six }), ["q_proj", "target_modules"]),
        (
            serde_json::json!({ "exclude_modules": ["layers.2.mlp.up_proj"] }),
            ["layers.2.mlp.up_proj", "target_modules"],
        ),
    ] {
        let error = load(fields).expect_err("must be refused");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    for fields in [
        serde_json::json!({ "r": 4, "rank_pattern": { ".*_proj": 8 } }),
        serde_json::json!({ "target_modules": "all-linear" }),
        serde_json::json!({ "target_modules": six, "target_parameters": ["q_proj.weight"] }),
    ] {
        load(fields).expect("loads");
    }
}

#[test]
fn random_weights_are_the_same_in_memory_and_written_in_shards() {
    let source = root().join("tiny-qwen3vl-untied");
    let config = Config::open(&source).expect("opens");
    for shard_bytes in [u64::MAX, 300_000] {
        let out = tempfile::tempdir().expect("a folder");
        let count = write_random(&source, out.path(), 7, shard_bytes).expect("writes");
        let written = Qwen3Vl::load(out.path(), Purpose::Training).expect("loads");
        assert_eq!(count, written.parameter_count());
        same_weights(&written, &Qwen3Vl::init(&config, 7));
        assert!(files(out.path()).contains(&"tokenizer.json".to_string()));
    }
    let model = Qwen3Vl::init(&config, 7);
    let embeddings = model.text.embeddings.value.to_vec();
    let mean = embeddings.iter().map(|&v| f64::from(v)).sum::<f64>() / embeddings.len() as f64;
    let deviation =
        (embeddings.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / embeddings.len() as f64).sqrt();
    assert!(mean.abs() < 5e-4 && (deviation - 0.02).abs() < 5e-4, "mean {mean}, deviation {deviation}");
    assert!(model.text.norm.value.to_vec().iter().all(|&v| v == 1.0));
    assert!(model.vision.blocks[0].norm1.bias.value.to_vec().iter().all(|&v| v == 0.0));
    assert_ne!(Qwen3Vl::init(&config, 8).text.embeddings.value.to_vec(), embeddings);
}

#[test]
fn bfloat16_weights_stay_in_the_mapped_file_and_take_an_adapter() {
    let out = tempfile::tempdir().expect("a folder");
    let mut model = model(&root(), "tiny-qwen3vl");
    model.config.dtype = WeightDtype::Bf16;
    model.save(out.path()).expect("saves");
    let mut mapped = Qwen3Vl::load(out.path(), Purpose::Inference).expect("loads");
    let copied = Qwen3Vl::load(out.path(), Purpose::Training).expect("loads");
    assert_eq!(mapped.text.layers[0].q.weight.value.dtype(), Dtype::Bf16);
    assert_eq!(mapped.text.embeddings.value.dtype(), Dtype::Bf16);
    assert_eq!(copied.text.layers[0].q.weight.value.dtype(), Dtype::F32);
    assert_relative("states", &states(&mapped, Adapter::Off), &states(&copied, Adapter::Off), 1e-5);
    mapped.add_lora(&LoraConfig::default(), 3).expect("selects");
    mapped.set_trainable(Parts::LORA);
    assert_eq!(mapped.text.layers[0].q.weight.value.dtype(), Dtype::Bf16, "the base stays where it is");
    mapped.remove_lora();
    mapped.set_trainable(Parts { text: true, ..Parts::NONE });
    assert_eq!(mapped.text.layers[0].q.weight.value.dtype(), Dtype::F32, "what is trained is a copy");
    assert_relative("states", &states(&mapped, Adapter::Off), &states(&copied, Adapter::Off), 1e-5);
}

#[test]
fn a_checkpoint_that_disagrees_with_its_configuration_is_refused_by_name() {
    let out = tempfile::tempdir().expect("a folder");
    model(&root(), "tiny-qwen3vl").save(out.path()).expect("saves");
    let path = out.path().join("config.json");
    let config = std::fs::read_to_string(&path).expect("reads");
    let error = |from: &str, to: &str| {
        assert!(config.contains(from));
        std::fs::write(&path, config.replace(from, to)).expect("written");
        Qwen3Vl::load(out.path(), Purpose::Training).map(|_| ()).expect_err("must be refused").to_string()
    };
    assert!(error("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3").contains("layers.3"));
    assert!(error("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5").contains("layers.4"));
    assert!(error("\"vocab_size\": 600", "\"vocab_size\": 601").contains("601"));
}
