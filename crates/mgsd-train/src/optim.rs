//! AdamW over the trained parameters of a model, with clipping by the global norm.

use crate::error::{Result, TrainError};
use crate::recipe::Optimiser;
use crate::world::World;
use mgsd_compute::ops::adamw;
use mgsd_compute::{Device, Dtype, Tensor};
use mgsd_model::param::Parameter;
use mgsd_model::reduction::Owners;
use mgsd_model::weights::Array;
use std::collections::BTreeMap;
use std::path::Path;

/// First and second moments of every trained parameter, and how many steps were taken.
pub struct OptimiserState {
    settings: Optimiser,
    moments: Vec<Moments>,
    steps: u64,
    world: World,
    /// Which process keeps the moments of each trained parameter, when they are shared out.
    owners: Option<Vec<usize>>,
}

struct Moments {
    name: String,
    /// `[rows, cols]` of the parameter.
    shape: [usize; 2],
    device: Device,
    /// Whether its master has a rest, wherever that is kept.
    has_rest: bool,
    /// `None` where another process keeps them.
    kept: Option<Kept>,
}

struct Kept {
    first: Tensor,
    second: Tensor,
    /// What a 32-bit master has beyond a bfloat16 parameter, on a GPU.
    rest: Option<Tensor>,
}

/// Factor that brings a gradient of `norm` to at most `limit` (0: no limit): `min(1, limit / (norm + 1e-6))`.
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit == 0.0 { 1.0 } else { (limit / (norm + 1e-6)).min(1.0) }
}

/// Deals parameters of these sizes to `count` processes: the largest first, each to the one that has least.
fn deal(sizes: &[usize], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(sizes[index]));
    let (mut owners, mut loads) = (vec![0; sizes.len()], vec![0; count]);
    for index in order {
        let owner = (0..count).min_by_key(|&rank| loads[rank]).unwrap_or(0);
        owners[index] = owner;
        loads[owner] += sizes[index];
    }
    owners
}

impl OptimiserState {
    /// Zero moments for every trained parameter, or, with `settings.shard`, for this process's share of them.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Parameter>, settings: Optimiser, world: &World) -> Self {
        let trained: Vec<&Parameter> = parameters.into_iter().filter(|parameter| parameter.is_trainable()).collect();
        let owners = (settings.shard && world.size() > 1).then(|| {
            let sizes: Vec<usize> = trained.iter().map(|parameter| parameter.count()).collect();
            deal(&sizes, world.size())
        });
        let kept = |parameter: &Parameter| {
            let value = &parameter.value;
            let zeros = || Tensor::zeros_on(value.device(), Dtype::F32, value.rows(), value.cols());
            Kept { first: zeros(), second: zeros(), rest: adamw::rest_of(value) }
        };
        let moments = trained.iter().enumerate().map(|(index, parameter)| Moments {
            name: parameter.name.clone(),
            shape: parameter.value.shape(),
            device: parameter.value.device(),
            has_rest: adamw::has_rest(&parameter.value),
            kept: owners.as_ref().is_none_or(|owners| owners[index] == world.rank()).then(|| kept(parameter)),
        });
        Self { settings, moments: moments.collect(), steps: 0, world: world.clone(), owners }
    }

    /// Which process keeps the moments of each trained parameter, when they are shared out: its gradient is wanted
    /// there only.
    pub fn owners(&self) -> Option<Owners> {
        let owners = self.owners.as_ref()?;
        Some(self.moments.iter().zip(owners).map(|(moments, &owner)| (moments.name.clone(), owner)).collect())
    }

    /// The root of the sum of the squares of all gradients, which are those of all processes already. It is the `norm`
    /// of [`step`](Self::step).
    pub fn norm<'a>(&self, parameters: impl IntoIterator<Item = &'a Parameter>) -> f64 {
        let trained = parameters.into_iter().filter(|parameter| parameter.is_trainable());
        let mine = trained.zip(&self.moments).filter(|(_, moments)| moments.kept.is_some());
        let squares = adamw::sum_of_squares(mine.filter_map(|(parameter, _)| parameter.grad.as_ref()));
        match self.owners {
            None => squares.sqrt(),
            Some(_) => self.world.sum([squares])[0].sqrt(),
        }
    }

    /// One step on every trained parameter, in the order given to [`new`](Self::new). `norm` is the gradients' norm.
    pub fn step<'a>(&mut self, parameters: impl IntoIterator<Item = &'a mut Parameter>, learning_rate: f64, norm: f64) {
        self.steps += 1;
        let settings = adamw::AdamW {
            learning_rate: learning_rate as f32,
            beta1: self.settings.betas[0] as f32,
            beta2: self.settings.betas[1] as f32,
            eps: self.settings.eps as f32,
            weight_decay: self.settings.weight_decay as f32,
        };
        let scale = clip_factor(norm, self.settings.clip) as f32;
        let trained: Vec<&mut Parameter> =
            parameters.into_iter().filter(|parameter| parameter.is_trainable()).collect();
        let mut updates = Vec::with_capacity(trained.len());
        let mut others = Vec::new();
        for (parameter, moments) in trained.into_iter().zip(&mut self.moments) {
            assert_eq!(parameter.name, moments.name, "the order of parameters changed");
            let Parameter { value, grad: Some(grad), .. } = parameter else { continue };
            match &mut moments.kept {
                Some(Kept { first: first_moment, second: second_moment, rest }) => {
                    let rest = rest.as_mut();
                    updates.push(adamw::Update { param: value, rest, grad, first_moment, second_moment });
                }
                None => others.push(value),
            }
        }
        adamw::step_all(&mut updates, &settings, self.steps, scale);
        if let Some(owners) = &self.owners {
            let (mut mine, mut theirs) = (updates.into_iter().map(|update| update.param), others.into_iter());
            let rank = self.world.rank();
            let values = owners.iter().filter_map(|&owner| {
                let value = if owner == rank { mine.next() } else { theirs.next() };
                value.map(|value| (value, owner))
            });
            self.world.share(values);
        }
    }

    /// Puts the moments into `arrays` as `exp_avg.NAME` and `exp_avg_sq.NAME`, and the rest of a master as
    /// `master_rest.NAME` (the bit patterns, read as bfloat16). All processes take part; rank 0 gets everything.
    pub(crate) fn store(&mut self, arrays: &mut BTreeMap<String, Array>) {
        for (index, moments) in self.moments.iter_mut().enumerate() {
            let owner = self.owners.as_ref().map_or(0, |owners| owners[index]);
            let ([rows, cols], device, has_rest) = (moments.shape, moments.device, moments.has_rest);
            let mut lent = None;
            let kept = match &mut moments.kept {
                Some(kept) => kept,
                None => {
                    let zeros = |dtype| Tensor::zeros_on(device, dtype, rows, cols);
                    let rest = has_rest.then(|| zeros(Dtype::Bf16));
                    lent.insert(Kept { first: zeros(Dtype::F32), second: zeros(Dtype::F32), rest })
                }
            };
            let Kept { first, second, rest } = kept;
            if self.owners.is_some() {
                self.world.share([(&mut *first, owner), (&mut *second, owner)]);
                self.world.share(rest.iter_mut().map(|rest| (rest, owner)));
            }
            if !self.world.writes() {
                continue;
            }
            for (prefix, tensor) in [("exp_avg", &*first), ("exp_avg_sq", &*second)] {
                arrays.insert(format!("{prefix}.{}", moments.name), array_of(tensor));
            }
            if let Some(rest) = rest {
                arrays.insert(format!("master_rest.{}", moments.name), array_of(rest));
            }
        }
    }

    /// Takes the moments out of `arrays`; `path` is named in errors.
    pub(crate) fn restore(&mut self, path: &Path, arrays: &BTreeMap<String, Array>, steps: u64) -> Result<()> {
        self.steps = steps;
        for moments in &mut self.moments {
            let (name, Some(Kept { first, second, rest })) = (&moments.name, &mut moments.kept) else { continue };
            copy_array(path, arrays, &format!("exp_avg.{name}"), first)?;
            copy_array(path, arrays, &format!("exp_avg_sq.{name}"), second)?;
            let below = format!("master_rest.{name}");
            if rest.is_some() != arrays.contains_key(&below) {
                let of = |rest: bool| if rest { "bfloat16 weights, as on a GPU" } else { "32-bit weights, as on CPUs" };
                return Err(TrainError::file(
                    path,
                    format!(
                        "is of a run with {}, this one has {}; resume it where it was",
                        of(rest.is_none()),
                        of(rest.is_some())
                    ),
                ));
            }
            if let Some(rest) = rest {
                copy_array(path, arrays, &below, rest)?;
            }
        }
        Ok(())
    }
}

/// A tensor as an array to store.
pub(crate) fn array_of(tensor: &Tensor) -> Array {
    Array::f32(&[tensor.rows(), tensor.cols()], tensor.to_vec())
}

/// Copies the array called `name` into a tensor of the same size.
pub(crate) fn copy_array(path: &Path, arrays: &BTreeMap<String, Array>, name: &str, tensor: &mut Tensor) -> Result<()> {
    let values = arrays.get(name).and_then(Array::as_f32).ok_or_else(|| {
        TrainError::file(
            path,
            format!("tensor {name} is missing; the checkpoint belongs to a run with other trained parts"),
        )
    })?;
    if values.len() != tensor.len() {
        return Err(TrainError::file(
            path,
            format!("tensor {name} has {} numbers, the model needs {}", values.len(), tensor.len()),
        ));
    }
    tensor.write_rows(0, values);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str, values: &[f32], grad: &[f32]) -> Parameter {
        let mut parameter =
            Parameter::new(name, vec![values.len()], Tensor::from_vec(1, values.len(), values.to_vec()));
        parameter.set_trainable(true);
        parameter.grad = Some(Tensor::from_vec(1, grad.len(), grad.to_vec()));
        parameter
    }

    #[test]
    fn clipping_scales_the_whole_gradient_to_the_limit() {
        let parameters = [parameter("a", &[1.0, 1.0], &[3.0, 0.0]), parameter("b", &[1.0], &[4.0])];
        let state = OptimiserState::new(&parameters, Optimiser::default(), &World::alone());
        let norm = state.norm(&parameters);
        assert_eq!(norm, 5.0);
        assert!((clip_factor(norm, 1.0) - 0.2).abs() < 1e-6);
        assert_eq!(clip_factor(norm, 0.0), 1.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
    }

    #[test]
    fn weights_are_dealt_out_evenly() {
        let owners = deal(&[5, 1, 4, 1, 1], 2);
        let load = |rank| owners.iter().zip([5, 1, 4, 1, 1]).filter(|(o, _)| **o == rank).map(|(_, size)| size).sum();
        let loads: [usize; 2] = [load(0), load(1)];
        assert_eq!(loads, [6, 6]);
    }

    #[test]
    fn moments_restored_from_arrays_continue_as_if_never_stopped() {
        let settings = Optimiser { lr: 0.1, weight_decay: 0.01, ..Optimiser::default() };
        let mut straight = [parameter("a", &[1.0, -2.0], &[0.3, -0.7])];
        let mut state = OptimiserState::new(&straight, settings, &World::alone());
        state.step(&mut straight, 0.1, 0.7);
        let mut arrays = BTreeMap::new();
        state.store(&mut arrays);
        let mut resumed = [parameter("a", &straight[0].value.to_vec(), &[0.3, -0.7])];
        let mut other = OptimiserState::new(&resumed, settings, &World::alone());
        other.restore(Path::new("x"), &arrays, 1).unwrap();
        state.step(&mut straight, 0.1, 0.7);
        other.step(&mut resumed, 0.1, 0.7);
        assert_eq!(straight[0].value.to_vec(), resumed[0].value.to_vec());
        let mut of_a_gpu = arrays.clone();
        of_a_gpu.insert("master_rest.a".into(), arrays["exp_avg.a"].clone());
        let text = other.restore(Path::new("x"), &of_a_gpu, 1).unwrap_err().to_string();
        assert!(text.contains("as on a GPU") && text.contains("resume it where it was"), "{text}");
        arrays.remove("exp_avg.a");
        let text = other.restore(Path::new("x"), &arrays, 1).unwrap_err().to_string();
        assert!(text.contains("exp_avg.a") && text.starts_with("x:"), "{text}");
    }
}
