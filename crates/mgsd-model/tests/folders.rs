//! Configurations and weights of model folders: both layouts, round trips, and what is wrong with broken ones.

mod io_common;

use std::{collections::BTreeMap, path::Path};

use io_common::{copy_of, data, json};
use mgsd_compute::Dtype;
use mgsd_model::{
    config::{Config, WeightDtype},
    error::Result,
    image::{ImageProcessor, PixelLimits},
    model::{Purpose, Qwen3Vl},
    weights::{
        Array, Checkpoint, CheckpointWriter, LoadAs, SHARD_BYTES, StoredDtype, TensorSpec, copy_folder_files,
        matrix_shape, read_arrays, write_arrays,
    },
};
use serde_json::{Value, json};

#[test]
fn both_layouts_give_the_same_sizes() {
    let new = Config::open(&data("tiny-qwen3vl")).unwrap();
    let old = Config::open(&data("tiny-qwen3vl-untied")).unwrap();
    assert_eq!(new.text, old.text);
    assert_eq!(new.vision, old.vision);
    assert!(new.tie_word_embeddings && !old.tie_word_embeddings);
    assert_eq!(new.text.rope_theta, 5e6);
    assert_eq!(new.text.mrope_section, [6, 5, 5]);
    assert_eq!((new.text.query_size(), new.text.key_value_size(), new.text.hidden_size), (128, 64, 64));
    assert_eq!((new.vision.head_dim(), new.vision.position_side(), new.vision.patch_len()), (16, 8, 1536));
    assert_eq!(new.eos_token_ids, [542, 540]);
    assert_eq!(new.dtype, WeightDtype::F32);
}

/// The stored configuration with one value changed.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Config> {
    let mut root = json("tiny-qwen3vl/config.json");
    change(&mut root);
    Config::from_json(Path::new("some/config.json"), &root, None)
}

#[test]
fn an_unsupported_or_missing_setting_is_refused_with_file_field_and_value() {
    type Case = (fn(&mut Value), &'static str, &'static str);
    let cases: [Case; 12] = [
        (|root| root["model_type"] = json!("llama"), "model_type", "llama"),
        (|root| root["text_config"]["attention_bias"] = json!(true), "text_config.attention_bias", "true"),
        (|root| root["text_config"]["hidden_act"] = json!("relu"), "text_config.hidden_act", "relu"),
        (|root| root["vision_config"]["hidden_act"] = json!("relu"), "vision_config.hidden_act", "relu"),
        (|root| root["text_config"]["hidden_size"] = json!("64"), "text_config.hidden_size", "64"),
        (|root| root["text_config"]["hidden_size"] = Value::Null, "text_config.hidden_size", "missing"),
        (|root| root["text_config"] = json!(1), "text_config", "object"),
        (
            |root| root["text_config"]["rope_parameters"]["mrope_section"] = json!([6, 5, 4]),
            "mrope_section",
            "[6, 5, 4]",
        ),
        (
            |root| root["text_config"]["rope_parameters"]["rope_type"] = json!("yarn"),
            "rope_parameters.rope_type",
            "yarn",
        ),
        (|root| root["vision_config"]["deepstack_visual_indexes"] = json!([9]), "deepstack_visual_indexes", "9"),
        (|root| root["vision_config"]["out_hidden_size"] = json!(32), "vision_config.out_hidden_size", "32"),
        (|root| root["image_token_id"] = json!(600), "image_token_id", "600"),
    ];
    for (change, field, value) in cases {
        let error = changed(change).unwrap_err().to_string();
        assert!(error.contains("some/config.json") && error.contains(field) && error.contains(value), "{error}");
    }
    assert_eq!(changed(|_| ()).unwrap().eos_token_ids, [542]);
    assert_eq!(changed(|root| root["dtype"] = json!("bfloat16")).unwrap().dtype, WeightDtype::Bf16);
    let error = Config::open(&data("no-such-model")).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn rotary_settings_of_both_layouts_must_agree() {
    let both = |old: Value| {
        changed(|root| {
            root["text_config"]["rope_parameters"]["rope_theta"] = json!(5e6);
            root["text_config"]["rope_scaling"] = old;
        })
    };
    let same = json!({ "type": "mrope", "mrope_section": [6, 5, 5], "rope_theta": 5_000_000 });
    for old in [same.clone(), json!({}), Value::Null] {
        assert_eq!(both(old).unwrap().text.rope_theta, 5e6);
    }
    for (key, value) in [("rope_theta", json!(1e3)), ("rope_theta", Value::Null), ("mrope_section", json!([2, 7, 7]))] {
        let mut other = same.clone();
        other[key] = value;
        let error = both(other).unwrap_err().to_string();
        assert!(error.contains("text_config.rope_scaling") && error.contains("rope_parameters"), "{error}");
    }
    assert!(both(json!({ "rope_type": "yarn" })).unwrap_err().to_string().contains("rope_scaling.rope_type"));
}

#[test]
fn the_base_of_the_vision_tower_is_found_where_old_files_have_it() {
    let base = |fields: Value| {
        let of = changed(|root| {
            let vision = root["vision_config"].as_object_mut().unwrap();
            vision.remove("rope_parameters");
            vision.extend(fields.as_object().unwrap().clone());
        });
        of.map(|config| config.vision.rope_theta)
    };
    assert_eq!(base(json!({})).unwrap(), 1e4);
    assert_eq!(base(json!({ "rope_theta": 300 })).unwrap(), 300.0);
    assert_eq!(base(json!({ "rope_scaling": { "rope_type": "default" }, "rope_theta": 300 })).unwrap(), 300.0);
    assert_eq!(base(json!({ "rope_scaling": { "rope_theta": 200 }, "rope_theta": 300 })).unwrap(), 200.0);
    assert_eq!(base(json!({ "rope_parameters": { "rope_type": "axial", "rope_theta": 500 } })).unwrap(), 500.0);
    let error = base(json!({ "rope_scaling": { "rope_type": "linear", "factor": 2 } })).unwrap_err().to_string();
    assert!(error.contains("rope_scaling.rope_type") && error.contains("linear"), "{error}");
}

#[test]
fn processor_settings_come_from_either_file_and_limits_replace_them() {
    let gathered = ImageProcessor::open(&data("tiny-qwen3vl"), PixelLimits::default()).unwrap();
    let separate = ImageProcessor::open(&data("tiny-qwen3vl-untied"), PixelLimits::default()).unwrap();
    assert_eq!(gathered.pixel_limits(), (65_536, 16_777_216));
    assert_eq!(separate.pixel_limits(), gathered.pixel_limits());
    assert_eq!(separate.layout(), gathered.layout());
    let dir = copy_of("tiny-qwen3vl-untied");
    let path = dir.path().join("preprocessor_config.json");
    let mut root: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    root["min_pixels"] = json!(2048);
    root["max_pixels"] = json!(4096);
    std::fs::write(&path, root.to_string()).unwrap();
    assert_eq!(ImageProcessor::open(dir.path(), PixelLimits::default()).unwrap().pixel_limits(), (2048, 4096));
    let limits = PixelLimits { min_pixels: None, max_pixels: Some(3000) };
    assert_eq!(ImageProcessor::open(dir.path(), limits).unwrap().pixel_limits(), (2048, 3000));
    let limits = PixelLimits { min_pixels: Some(5000), max_pixels: None };
    let error = ImageProcessor::open(dir.path(), limits).unwrap_err().to_string();
    assert!(error.contains("5000") && error.contains("4096"), "{error}");
    root["resample"] = json!(2);
    std::fs::write(&path, root.to_string()).unwrap();
    assert!(ImageProcessor::open(dir.path(), PixelLimits::default()).unwrap_err().to_string().contains("resample"));
}

#[test]
fn stored_tensors_have_their_names_shapes_and_types() {
    let tied = Checkpoint::open(&data("tiny-qwen3vl")).unwrap();
    let untied = Checkpoint::open(&data("tiny-qwen3vl-untied")).unwrap();
    assert_eq!((tied.names().count(), untied.names().count()), (121, 122));
    assert!(!tied.contains("lm_head.weight") && untied.contains("lm_head.weight"));
    let name = "model.visual.patch_embed.proj.weight";
    assert_eq!(tied.shape(name).unwrap(), [32, 3, 2, 16, 16]);
    assert_eq!(tied.dtype(name).unwrap(), StoredDtype::F32);
    let matrix = tied.load_matrix(name, 32, 1536, LoadAs::F32).unwrap();
    assert_eq!((matrix.rows(), matrix.cols()), (32, 1536));
    assert_eq!(matrix.to_vec(), tied.read_f32(name).unwrap());
    let norm = tied.load("model.language_model.norm.weight", LoadAs::MappedBf16IfPossible).unwrap();
    assert_eq!((norm.rows(), norm.cols(), norm.dtype()), (1, 64, Dtype::F32));
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_named() {
    let checkpoint = Checkpoint::open(&data("tiny-qwen3vl")).unwrap();
    let error = checkpoint.load("lm_head.weight", LoadAs::F32).err().unwrap().to_string();
    assert!(
        error.contains("lm_head.weight") && error.contains("missing") && error.contains("model.safetensors"),
        "{error}"
    );
    let error =
        checkpoint.load_matrix("model.language_model.norm.weight", 1, 65, LoadAs::F32).err().unwrap().to_string();
    assert!(error.contains("norm.weight") && error.contains("[64]") && error.contains("1 x 65"), "{error}");
}

#[test]
fn a_file_cut_anywhere_and_one_that_is_no_safetensors_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(data("tiny-qwen3vl/model.safetensors")).unwrap();
    for length in [0, 5, 8, 100, 20_000, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("cut short") && error.contains("model.safetensors"), "{length}: {error}");
    }
    std::fs::write(&path, [b'x'; 64]).unwrap();
    let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("not a safetensors file"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(empty.path()).err().unwrap().to_string();
    assert!(error.contains("model.safetensors.index.json"), "{error}");
}

#[test]
fn a_header_that_lies_about_a_tensor_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for (entry, wanted) in [
        (json!({ "dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12] }), "does not fit"),
        (json!({ "dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4] }), "F8_E4M3"),
        (json!({ "dtype": "F32", "shape": [4], "data_offsets": [8, 0] }), "does not fit"),
        (json!({ "dtype": "F32", "shape": [u64::MAX, 3], "data_offsets": [0, 16] }), "does not fit"),
        (json!({ "dtype": "F32", "shape": [-4], "data_offsets": [0, 16] }), "whole numbers"),
        (json!({ "dtype": "F32", "shape": [4], "data_offsets": [u64::MAX - 16, u64::MAX] }), "beyond"),
    ] {
        let header = json!({ "x": entry }).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 16]].concat();
        std::fs::write(&path, file).unwrap();
        let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("tensor x") && error.contains(wanted), "{error}");
    }
}

fn write_copy(from: &Checkpoint, dir: &Path, dtype: WeightDtype, shard_bytes: u64) -> Result<()> {
    let specs = from.names().map(|name| TensorSpec { name: name.into(), shape: from.shape(name).unwrap().to_vec() });
    let mut writer = CheckpointWriter::create(dir, specs.collect(), dtype, shard_bytes)?;
    for name in from.names() {
        writer.write(name, &from.read_f32(name)?)?;
    }
    writer.finish()
}

#[test]
fn a_tied_folder_with_another_head_is_refused() {
    let from = data("tiny-qwen3vl");
    let checkpoint = Checkpoint::open(&from).unwrap();
    let (head, embeddings) = ("lm_head.weight", "model.language_model.embed_tokens.weight");
    let dir = tempfile::tempdir().unwrap();
    copy_folder_files(&from, dir.path()).unwrap();
    for (shift, problem) in [(0.0, ""), (1.0, "tie_word_embeddings")] {
        let shape = |name: &str| checkpoint.shape(if name == head { embeddings } else { name }).unwrap().to_vec();
        let names: Vec<&str> = checkpoint.names().filter(|name| *name != head).chain([head]).collect();
        let specs = names.iter().map(|&name| TensorSpec { name: name.into(), shape: shape(name) });
        let mut writer = CheckpointWriter::create(dir.path(), specs.collect(), WeightDtype::F32, SHARD_BYTES).unwrap();
        for name in names {
            let mut values = checkpoint.read_f32(if name == head { embeddings } else { name }).unwrap();
            if name == head {
                values[7] += shift;
            }
            writer.write(name, &values).unwrap();
        }
        writer.finish().unwrap();
        let found = Qwen3Vl::load(dir.path(), Purpose::Inference);
        assert_eq!(found.is_ok(), problem.is_empty());
        let text = found.err().map_or(String::new(), |error| error.to_string());
        assert!(text.contains(problem), "{text}");
    }
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_written_in_one_file_or_in_shards_reads_back_the_same() {
    let checkpoint = Checkpoint::open(&data("tiny-qwen3vl-untied")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Shards first, then one file over them, then shards again: nothing of an earlier layout may stay.
    for (shard_bytes, files) in [(700_000, 4), (SHARD_BYTES, 1), (1_000_000, 3)] {
        write_copy(&checkpoint, dir.path(), WeightDtype::F32, shard_bytes).unwrap();
        assert_eq!(file_names(dir.path()).len(), files, "{:?}", file_names(dir.path()));
        let copy = Checkpoint::open(dir.path()).unwrap();
        assert!(copy.names().eq(checkpoint.names()));
        for name in checkpoint.names() {
            assert_eq!(copy.shape(name).unwrap(), checkpoint.shape(name).unwrap());
            assert_eq!(copy.read_f32(name).unwrap(), checkpoint.read_f32(name).unwrap(), "{name}");
        }
    }
    let index: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("model.safetensors.index.json")).unwrap()).unwrap();
    let total: usize = checkpoint.names().map(|name| checkpoint.read_f32(name).unwrap().len() * 4).sum();
    assert_eq!(index["metadata"]["total_size"], json!(total));
}

#[test]
fn bf16_weights_stay_mapped_or_become_floats_with_the_same_values() {
    let checkpoint = Checkpoint::open(&data("tiny-qwen3vl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_copy(&checkpoint, dir.path(), WeightDtype::Bf16, SHARD_BYTES).unwrap();
    let copy = Checkpoint::open(dir.path()).unwrap();
    for name in checkpoint.names() {
        assert_eq!(copy.dtype(name).unwrap(), StoredDtype::Bf16);
        let mapped = copy.load(name, LoadAs::MappedBf16IfPossible).unwrap();
        let floats = copy.load(name, LoadAs::F32).unwrap();
        assert_eq!((mapped.dtype(), floats.dtype()), (Dtype::Bf16, Dtype::F32));
        assert_eq!(mapped.to_vec(), floats.to_vec(), "{name}");
        let rounding = checkpoint
            .read_f32(name)
            .unwrap()
            .iter()
            .zip(floats.to_vec())
            .all(|(&exact, rounded)| (exact - rounded).abs() <= exact.abs() / 256.0);
        assert!(rounding, "{name}");
    }
}

#[test]
fn a_checkpoint_that_is_not_finished_leaves_the_older_one_as_it_was() {
    let checkpoint = Checkpoint::open(&data("tiny-qwen3vl")).unwrap();
    let dir = copy_of("tiny-qwen3vl");
    let before = file_names(dir.path());
    let specs = ["a", "b"].map(|name| TensorSpec { name: name.into(), shape: vec![2, 2] }).to_vec();
    let mut writer = CheckpointWriter::create(dir.path(), specs, WeightDtype::F32, SHARD_BYTES).unwrap();
    assert!(writer.write("b", &[0.0; 4]).unwrap_err().to_string().contains("a of shape [2, 2]"));
    assert!(writer.write("a", &[0.0; 3]).is_err());
    writer.write("a", &[0.0; 4]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("tensor b"));
    assert_eq!(file_names(dir.path()), before);
    assert!(Checkpoint::open(dir.path()).unwrap().names().eq(checkpoint.names()));
}

#[test]
fn an_index_that_names_a_tensor_no_shard_has_is_refused() {
    let checkpoint = Checkpoint::open(&data("tiny-qwen3vl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_copy(&checkpoint, dir.path(), WeightDtype::F32, 700_000).unwrap();
    let path = dir.path().join("model.safetensors.index.json");
    let whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let first = whole["weight_map"]["model.language_model.embed_tokens.weight"].clone();
    for (name, shard, wanted) in [("ghost", first, "ghost"), ("x", json!("../x.safetensors"), "same folder")] {
        let mut index = whole.clone();
        index["weight_map"][name] = shard;
        std::fs::write(&path, index.to_string()).unwrap();
        let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("weight_map") && error.contains(wanted), "{error}");
    }
}

#[test]
fn arrays_of_both_kinds_survive_a_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.safetensors");
    let arrays = BTreeMap::from([
        ("logits".to_string(), Array::f32(&[2, 3], vec![1.0, -0.5, f32::MIN_POSITIVE, f32::INFINITY, 0.1, 3e38])),
        ("ids".to_string(), Array::i64(&[1, 2], vec![-100, i64::MAX])),
        ("scalar".to_string(), Array::f32(&[], vec![7.0])),
        ("none".to_string(), Array::f32(&[0, 4], vec![])),
    ]);
    write_arrays(&path, &arrays).unwrap();
    write_arrays(&path, &arrays).unwrap();
    assert_eq!(read_arrays(&path).unwrap(), arrays);
    assert_eq!(file_names(dir.path()), ["trace.safetensors"]);
    assert_eq!(matrix_shape(&[]), (1, 1));
    assert_eq!(matrix_shape(&[5]), (1, 5));
    assert_eq!(matrix_shape(&[5, 2, 3]), (5, 6));
    assert!(write_arrays(&dir.path().join("no/such/folder.safetensors"), &arrays).is_err());
}

#[test]
fn all_files_but_weights_are_carried_along_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let from = data("tiny-qwen3vl-untied");
    copy_folder_files(&from, dir.path()).unwrap();
    let wanted: Vec<String> = file_names(&from).into_iter().filter(|name| name != "model.safetensors").collect();
    assert_eq!(file_names(dir.path()), wanted);
    for name in wanted {
        assert_eq!(std::fs::read(dir.path().join(&name)).unwrap(), std::fs::read(from.join(&name)).unwrap(), "{name}");
    }
}
