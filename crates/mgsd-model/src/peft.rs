//! Adapters on disk, in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use mgsd_compute::Device;
use serde_json::{Value, json};

use crate::config::{Section, read_json};
use crate::error::{Error, Result};
use crate::lora::{Lora, LoraConfig, peft_name};
use crate::model::{Purpose, Qwen3Vl};
use crate::weights::{Array, Checkpoint, LoadAs, write_arrays, write_atomically};

/// File of the settings.
const CONFIG: &str = "adapter_config.json";
/// File of the weights.
const WEIGHTS: &str = "adapter_model.safetensors";

impl Qwen3Vl {
    /// A model folder on `device`, to answer and not to be trained, with the PEFT adapter in `adapter` on top of it if
    /// one is named.
    pub fn for_inference(dir: &Path, adapter: Option<&Path>, device: Device) -> Result<Self> {
        let mut model = Self::load(dir, Purpose::Inference)?;
        if let Some(adapter) = adapter {
            model.load_adapter(adapter)?;
        }
        model.settle(device);
        Ok(model)
    }

    /// Writes the adapters to a folder that PEFT loads as it is. `base` is the name or folder of the base model that is
    /// recorded there.
    pub fn save_adapter(&self, dir: &Path, base: &str, config: &LoraConfig) -> Result<()> {
        let mut arrays = BTreeMap::new();
        // PEFT would also put an adapter on this one if its last name alone were said.
        let (mut with, mut without) = (Vec::new(), vec!["model.visual.patch_embed.proj"]);
        self.visit_linears(&mut |layer| {
            let Some(lora) = &layer.lora else {
                without.push(layer.name());
                return;
            };
            with.push(layer.name());
            for parameter in [&lora.a, &lora.b] {
                arrays.insert(parameter.name.clone(), Array::f32(&parameter.shape, parameter.value.to_vec()));
            }
        });
        if with.is_empty() {
            return Err(Error::Model(format!("there is no adapter to write to {}; add one first", dir.display())));
        }
        std::fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.into(), source })?;
        write_arrays(&dir.join(WEIGHTS), &arrays)?;
        let settings = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": whole(config.alpha),
            "lora_dropout": 0.0,
            "target_modules": targets(&with, &without),
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "use_rslora": false,
            "use_dora": false,
            "modules_to_save": null,
            "layers_to_transform": null,
            "layers_pattern": null,
            "rank_pattern": {},
            "alpha_pattern": {},
            "auto_mapping": null,
            "revision": null,
        });
        let path = dir.join(CONFIG);
        let text = serde_json::to_vec_pretty(&settings).map_err(|source| Error::Json { path: path.clone(), source })?;
        write_atomically(&path, |out| out.write_all(&text))
    }

    /// Puts the adapters of a PEFT folder onto the layers they name, frozen. Every tensor of the file must find its
    /// place, be of a layer that the settings name, and have the rank that they say. The returned settings name the
    /// layers in full.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<LoraConfig> {
        let settings = Settings::read(&dir.join(CONFIG))?;
        let path = dir.join(WEIGHTS);
        let weights = Checkpoint::open_file(&path)?;
        let mut left: BTreeSet<&str> = weights.names().collect();
        let mut targets = Vec::new();
        let mut wrong = None;
        self.visit_linears_mut(&mut |layer| {
            let names = [peft_name(layer.name(), "lora_A"), peft_name(layer.name(), "lora_B")];
            let found = names.each_ref().map(|name| left.remove(name.as_str()));
            if found == [false, false] || wrong.is_some() {
                return;
            }
            let (outputs, inputs) = (layer.weight.value.rows(), layer.weight.value.cols());
            let load = || -> Result<Lora> {
                let rank = weights.shape(&names[0])?.first().copied().unwrap_or(0);
                settings.check(layer.name(), rank).map_err(|problem| Error::Tensor {
                    path: path.clone(),
                    name: names[0].clone(),
                    problem,
                })?;
                let a = weights.load_matrix(&names[0], rank, inputs, LoadAs::F32)?;
                let b = weights.load_matrix(&names[1], outputs, rank, LoadAs::F32)?;
                let divisor = if settings.rank_stabilised { (rank as f32).sqrt() } else { rank as f32 };
                Ok(Lora::from_tensors(layer.name(), a, b, settings.lora.alpha / divisor))
            };
            match load() {
                Ok(mut lora) => {
                    lora.follow(layer);
                    targets.push(layer.name().to_string());
                    layer.lora = Some(lora);
                }
                Err(error) => wrong = Some(error),
            }
        });
        if let Some(error) = wrong {
            return Err(error);
        }
        if let Some(name) = left.first() {
            return Err(Error::Tensor {
                path,
                name: (*name).into(),
                problem: format!(
                    "({} in all) fits no layer of the model; was the adapter made for another base?",
                    left.len()
                ),
            });
        }
        if targets.is_empty() {
            return Err(Error::WeightsFile { path, problem: "holds no adapter".into() });
        }
        Ok(LoraConfig { targets, ..settings.lora })
    }

    /// Adds every adapter to its base weight and takes it off. The base weights become 32-bit floats in memory.
    pub fn merge_adapters(&mut self) -> usize {
        let mut merged = 0;
        self.visit_linears_mut(&mut |layer| {
            if let Some(lora) = layer.lora.take() {
                let mut values = layer.weight.value.to_vec();
                lora.add_to(&mut values);
                let (rows, cols) = (layer.weight.value.rows(), layer.weight.value.cols());
                let (device, dtype) = (layer.weight.value.device(), layer.weight.value.dtype());
                let merged_value = mgsd_compute::Tensor::from_vec(rows, cols, values);
                layer.weight.value = match device.is_cpu() {
                    true => merged_value,
                    false => merged_value.to_device(device, dtype),
                };
                merged += 1;
            }
        });
        merged
    }
}

impl Lora {
    /// `weight: [out, in]` row-major `+= scale * B A`, summed in double precision.
    pub(crate) fn add_to(&self, weight: &mut [f32]) {
        use rayon::prelude::*;
        let (rank, inputs) = (self.a.value.rows(), self.a.value.cols());
        let (a, b) = (self.a.value.to_vec(), self.b.value.to_vec());
        let rows = weight.par_chunks_exact_mut(inputs).zip(b.par_chunks_exact(rank));
        rows.for_each(|(weight, b)| {
            for (column, weight) in weight.iter_mut().enumerate() {
                let products = b.iter().enumerate().map(|(r, &b)| f64::from(b) * f64::from(a[r * inputs + column]));
                *weight = (f64::from(*weight) + f64::from(self.scale) * products.sum::<f64>()) as f32;
            }
        });
    }
}

/// The shortest list that names exactly these layers: last names if they select nothing else, else full names.
fn targets(with: &[&str], without: &[&str]) -> Vec<String> {
    let leaf = |name: &&str| name.rsplit('.').next().unwrap_or(name).to_string();
    let leaves: BTreeSet<String> = with.iter().map(leaf).collect();
    match without.iter().map(leaf).any(|name| leaves.contains(&name)) {
        false => leaves.into_iter().collect(),
        true => with.iter().map(ToString::to_string).collect(),
    }
}

/// A number as JSON, without a point if it is whole.
fn whole(number: f32) -> Value {
    match number.fract() == 0.0 {
        true => json!(number as i64),
        false => json!(number),
    }
}

/// What `adapter_config.json` says.
struct Settings {
    /// Rank and alpha; the layers are those of the weights file.
    lora: LoraConfig,
    /// Whether alpha is divided by the root of the rank.
    rank_stabilised: bool,
    /// Other ranks, by the end of a layer's name or a pattern for it.
    ranks: Vec<(String, usize)>,
    /// The layers by the ends of their names, if the file has a list of them.
    named: Option<Vec<String>>,
    /// Layers that have none all the same.
    excluded: Vec<String>,
}

impl Settings {
    fn read(path: &Path) -> Result<Self> {
        let root = read_json(path)?;
        let section = Section { path, name: "", value: &root };
        refuse_unsupported(&section)?;
        let alpha = match section.get("lora_alpha").and_then(Value::as_f64) {
            Some(alpha) if alpha > 0.0 => alpha as f32,
            _ => {
                let found = &root["lora_alpha"];
                return Err(section.wrong("lora_alpha", format!("is {found}; expected a positive number")));
            }
        };
        let ranks = match section.get("rank_pattern") {
            None => Vec::new(),
            Some(Value::Object(map)) => {
                let place = section.section("rank_pattern")?;
                map.keys().map(|key| Ok((key.clone(), place.size(key)?))).collect::<Result<_>>()?
            }
            Some(other) => return Err(section.wrong("rank_pattern", format!("is {other}; expected an object"))),
        };
        let mut named = texts(&root["target_modules"]);
        let weight = |name: String| name.strip_suffix(".weight").map(str::to_string);
        let parameters = texts(&root["target_parameters"]).into_iter().flatten().filter_map(weight);
        named.iter_mut().for_each(|named| named.extend(parameters.clone()));
        Ok(Self {
            lora: LoraConfig { rank: section.size("r")?, alpha, targets: Vec::new() },
            rank_stabilised: section.flag("use_rslora", false)?,
            ranks,
            named,
            excluded: texts(&root["exclude_modules"]).unwrap_or_default(),
        })
    }

    /// Says what is wrong with an adapter of this rank on this layer, which PEFT would pass over or not load.
    fn check(&self, layer: &str, rank: usize) -> std::result::Result<(), String> {
        let among = |names: &[String]| names.iter().any(|name| ends_in(layer, name));
        if !self.named.as_deref().is_none_or(among) || among(&self.excluded) {
            return Err(format!(
                "is of a layer that target_modules or exclude_modules in {CONFIG} leaves out, so that PEFT would pass it \
                 over; name the layer there, or take the tensor out"
            ));
        }
        // A pattern with other signs may or may not be for this layer.
        let plain = |name: &str| name.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
        let possible = || self.ranks.iter().filter(|(name, _)| !plain(name) || ends_in(layer, name));
        let certain = possible().any(|(name, _)| plain(name));
        if possible().any(|(_, named)| *named == rank) || (!certain && rank == self.lora.rank) {
            return Ok(());
        }
        let says = if certain { "rank_pattern".into() } else { format!("r ({})", self.lora.rank) };
        Err(format!(
            "has rank {rank}, which is not what {says} in {CONFIG} says; take both files from the same adapter"
        ))
    }
}

/// A list of texts; `None` if it is none.
fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array().map(|list| list.iter().filter_map(|item| item.as_str().map(str::to_string)).collect())
}

/// Whether a layer has this name or one that ends in it after a point.
fn ends_in(layer: &str, name: &str) -> bool {
    layer.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// Refuses what would make the adapter something else than `alpha / rank * B A` on linear layers.
fn refuse_unsupported(section: &Section) -> Result<()> {
    let root = section.value;
    let refuse = |key: &str, only: &str| section.wrong(key, format!("is {}; supported: {only}", root[key]));
    if root["peft_type"] != "LORA" {
        return Err(refuse("peft_type", "\"LORA\""));
    }
    for key in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if section.flag(key, false)? {
            return Err(refuse(key, "false"));
        }
    }
    if section.get("bias").is_some_and(|bias| bias != "none") {
        return Err(refuse("bias", "\"none\""));
    }
    let nothing = [
        "modules_to_save",
        "alpha_pattern",
        "layer_replication",
        "alora_invocation_tokens",
        "arrow_config",
        "use_bdlora",
    ];
    for key in nothing {
        let filled = match section.get(key) {
            None => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(value) => *value != Value::Bool(false),
        };
        if filled {
            return Err(refuse(key, "nothing"));
        }
    }
    // The others take something off the base's weights when they begin, which PEFT does again when it loads them.
    let begun = section.get("init_lora_weights");
    let plain =
        |value: &Value| value.is_boolean() || ["gaussian", "orthogonal", "eva"].iter().any(|name| value == name);
    if !begun.is_none_or(plain) {
        return Err(refuse(
            "init_lora_weights",
            "true, false, \"gaussian\", \"orthogonal\", \"eva\"; PEFT writes others as plain LoRA when save_pretrained is \
             given path_initial_model_for_weight_conversion",
        ));
    }
    Ok(())
}
