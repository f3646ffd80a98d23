//! AdamW over the trained parameters of a model, with clipping by the global norm.

use crate::error::{Result, TrainError};
use crate::recipe::Optimiser;
use mgsd_compute::ops::adamw;
use mgsd_compute::{Dtype, Tensor};
use mgsd_model::param::Parameter;
use mgsd_model::weights::Array;
use std::collections::BTreeMap;
use std::path::Path;

/// First and second moments of every trained parameter, and how many steps were taken.
pub struct OptimiserState {
    settings: Optimiser,
    moments: Vec<Moments>,
    steps: u64,
}

struct Moments {
    name: String,
    first: Tensor,
    second: Tensor,
    /// What a 32-bit master has beyond a bfloat16 parameter, on a GPU.
    rest: Option<Tensor>,
}

/// Root of the sum of squares of all gradients, in f64.
pub fn gradient_norm<'a>(parameters: impl IntoIterator<Item = &'a Parameter>) -> f64 {
    adamw::sum_of_squares(parameters.into_iter().filter_map(|parameter| parameter.grad.as_ref())).sqrt()
}

/// Factor that brings a gradient of `norm` to at most `limit` (0: no limit): `min(1, limit / (norm + 1e-6))`.
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit == 0.0 { 1.0 } else { (limit / (norm + 1e-6)).min(1.0) }
}

impl OptimiserState {
    /// Zero moments for every trained parameter.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Parameter>, settings: Optimiser) -> Self {
        let zeros = |parameter: &Parameter| {
            let value = &parameter.value;
            Tensor::zeros_on(value.device(), Dtype::F32, value.rows(), value.cols())
        };
        let moments = parameters
            .into_iter()
            .filter(|parameter| parameter.is_trainable())
            .map(|parameter| Moments {
                name: parameter.name.clone(),
                first: zeros(parameter),
                second: zeros(parameter),
                rest: adamw::rest_of(&parameter.value),
            })
            .collect();
        Self { settings, moments, steps: 0 }
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
        let trained = parameters.into_iter().filter(|parameter| parameter.is_trainable());
        for (parameter, moments) in trained.zip(&mut self.moments) {
            assert_eq!(parameter.name, moments.name, "the order of parameters changed");
            let Parameter { value, grad: Some(grad), .. } = parameter else { continue };
            let Moments { first, second, rest, .. } = moments;
            adamw::step(value, rest.as_mut(), grad, first, second, &settings, self.steps, scale);
        }
    }

    /// Puts the moments into `arrays` as `exp_avg.NAME` and `exp_avg_sq.NAME`, and the rest of a master as
    /// `master_rest.NAME` (the bit patterns, read as bfloat16).
    pub(crate) fn store(&self, arrays: &mut BTreeMap<String, Array>) {
        for moments in &self.moments {
            for (prefix, tensor) in [("exp_avg", &moments.first), ("exp_avg_sq", &moments.second)] {
                arrays.insert(format!("{prefix}.{}", moments.name), array_of(tensor));
            }
            if let Some(rest) = &moments.rest {
                arrays.insert(format!("master_rest.{}", moments.name), array_of(rest));
            }
        }
    }

    /// Takes the moments out of `arrays`; `path` is named in errors.
    pub(crate) fn restore(&mut self, path: &Path, arrays: &BTreeMap<String, Array>, steps: u64) -> Result<()> {
        self.steps = steps;
        for moments in &mut self.moments {
            let name = &moments.name;
            copy_array(path, arrays, &format!("exp_avg.{name}"), &mut moments.first)?;
            copy_array(path, arrays, &format!("exp_avg_sq.{name}"), &mut moments.second)?;
            if let Some(rest) = &mut moments.rest {
                copy_array(path, arrays, &format!("master_rest.{name}"), rest)?;
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
        let norm = gradient_norm(&parameters);
        assert_eq!(norm, 5.0);
        assert!((clip_factor(norm, 1.0) - 0.2).abs() < 1e-6);
        assert_eq!(clip_factor(norm, 0.0), 1.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
    }

    #[test]
    fn moments_restored_from_arrays_continue_as_if_never_stopped() {
        let settings = Optimiser { lr: 0.1, weight_decay: 0.01, ..Optimiser::default() };
        let mut straight = [parameter("a", &[1.0, -2.0], &[0.3, -0.7])];
        let mut state = OptimiserState::new(&straight, settings);
        state.step(&mut straight, 0.1, 0.7);
        let mut arrays = BTreeMap::new();
        state.store(&mut arrays);
        let mut resumed = [parameter("a", &straight[0].value.to_vec(), &[0.3, -0.7])];
        let mut other = OptimiserState::new(&resumed, settings);
        other.restore(Path::new("x"), &arrays, 1).unwrap();
        state.step(&mut straight, 0.1, 0.7);
        other.step(&mut resumed, 0.1, 0.7);
        assert_eq!(straight[0].value.to_vec(), resumed[0].value.to_vec());
        arrays.remove("exp_avg.a");
        let text = other.restore(Path::new("x"), &arrays, 1).unwrap_err().to_string();
        assert!(text.contains("exp_avg.a") && text.starts_with("x:"), "{text}");
    }
}
