//! Who scores the rollouts.

use crate::error::{Result, TrainError};
use crate::optim::{array_of, copy_array};
use crate::packing::MicroBatch;
use crate::passes::Passes;
use crate::recipe::{Recipe, TeacherKind};
use crate::student;
use mgsd_compute::{Device, Dtype, Tensor};
use mgsd_model::linear::Adapter;
use mgsd_model::model::{Keep, Qwen3Vl};
use mgsd_model::weights::Array;
use std::collections::BTreeMap;
use std::path::Path;

/// A model that sees the teacher prompt; never gets gradients.
pub(super) enum Teacher {
    /// The student's weights without its adapter: the frozen base.
    SharedBase,
    /// The student as it is.
    Student,
    /// A model of its own.
    Frozen(Box<Qwen3Vl>),
    /// An exponential average of the student.
    Average(Box<Average>),
}

/// The averaged model and how fast it follows.
pub(super) struct Average {
    model: Qwen3Vl,
    decay: f32,
    difference: Tensor,
}

/// The first average: the student. In bfloat16 it would stand still, since a step is smaller than a number's last digit.
fn averaged(recipe: &Recipe, device: Device) -> Result<Qwen3Vl> {
    let model = student::load(recipe, device)?.model;
    if model.head().value.dtype() == Dtype::Bf16 {
        return Err(TrainError::other("opcd.teacher")(
            "\"ema\" needs a model in 32-bit floats on a GPU; use dtype float32 in its config.json, or --device cpu",
        ));
    }
    Ok(model)
}

impl Teacher {
    pub(super) fn load(recipe: &Recipe, device: Device) -> Result<Self> {
        let settings = &recipe.opcd;
        Ok(match settings.teacher {
            TeacherKind::Base if recipe.model.adapter.is_some() => Self::SharedBase,
            TeacherKind::Base => Self::Frozen(Box::new(student::load_frozen(&recipe.model.base, device)?)),
            TeacherKind::Folder => {
                let folder = settings
                    .teacher_model
                    .as_deref()
                    .ok_or_else(|| TrainError::other("opcd.teacher_model")("expected with teacher = \"folder\""))?;
                Self::Frozen(Box::new(student::load_frozen(folder, device)?))
            }
            TeacherKind::Student => Self::Student,
            TeacherKind::Ema => Self::Average(Box::new(Average {
                model: averaged(recipe, device)?,
                decay: settings.ema_decay,
                difference: Tensor::empty(),
            })),
        })
    }

    /// States of the teacher at the rows that predict the response, copied to `out`.
    pub(super) fn hidden(&self, student: &Qwen3Vl, passes: &mut Passes, micro: &MicroBatch, out: &mut Tensor) {
        let (model, adapter) = match self {
            Self::SharedBase => (student, Adapter::Off),
            Self::Student => (student, Adapter::On),
            Self::Frozen(model) => (&**model, Adapter::On),
            Self::Average(average) => (&average.model, Adapter::On),
        };
        passes.forward(model, micro, adapter, Keep::Nothing);
        std::mem::swap(out, &mut passes.hidden);
    }

    /// The teacher's output projection, when it is not the student's.
    pub(super) fn own_head(&self) -> Option<&Tensor> {
        match self {
            Self::SharedBase | Self::Student => None,
            Self::Frozen(model) => Some(&model.head().value),
            Self::Average(average) => Some(&average.model.head().value),
        }
    }

    /// Lets an average follow the student.
    pub(super) fn follow(&mut self, student: &Qwen3Vl) {
        let Self::Average(average) = self else { return };
        let Average { model, decay, difference } = &mut **average;
        for (mine, theirs) in model.parameters_mut().into_iter().zip(student.parameters()) {
            if theirs.is_trainable() {
                // mean += (1 - decay) * (student - mean)
                difference.copy_from(&theirs.value);
                difference.add_scaled(&mine.value, -1.0);
                mine.value.add_scaled(difference, 1.0 - *decay);
            }
        }
    }

    pub(super) fn store(&self, arrays: &mut BTreeMap<String, Array>) {
        let Self::Average(average) = self else { return };
        for parameter in average.model.parameters().into_iter().filter(|parameter| parameter.is_trainable()) {
            arrays.insert(format!("average.{}", parameter.name), array_of(&parameter.value));
        }
    }

    pub(super) fn restore(&mut self, path: &Path, arrays: &BTreeMap<String, Array>) -> Result<()> {
        let Self::Average(average) = self else { return Ok(()) };
        for parameter in average.model.parameters_mut().into_iter().filter(|parameter| parameter.is_trainable()) {
            let name = format!("average.{}", parameter.name);
            copy_array(path, arrays, &name, &mut parameter.value)?;
        }
        Ok(())
    }
}
