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
    /// Of each parameter of the model, if it follows.
    means: Vec<Option<Mean>>,
}

/// Where a parameter's average is kept.
enum Mean {
    /// In the model itself.
    InPlace,
    /// In 32-bit floats beside a bfloat16 parameter, in which it would stand still: a step is smaller than a number's last
    /// digit.
    Beside(Tensor),
}

impl Average {
    /// The first average: the student.
    fn load(recipe: &Recipe, device: Device) -> Result<Self> {
        let mut model = student::load(recipe, device)?.model;
        let mut means = Vec::new();
        for parameter in model.parameters_mut() {
            let value = &parameter.value;
            means.push(parameter.is_trainable().then(|| match value.dtype() {
                Dtype::F32 => Mean::InPlace,
                Dtype::Bf16 => Mean::Beside(value.to_device(value.device(), Dtype::F32)),
            }));
            // It follows and is not trained itself.
            parameter.set_trainable(false);
        }
        Ok(Self { model, decay: recipe.opcd.ema_decay, difference: Tensor::empty(), means })
    }

    /// `mean += (1 - decay) (student - mean)`
    fn follow(&mut self, student: &Qwen3Vl) {
        let Self { model, decay, difference, means } = self;
        let parameters = model.parameters_mut().into_iter().zip(student.parameters());
        for ((mine, theirs), mean) in parameters.zip(means) {
            let Some(mean) = mean else { continue };
            let theirs = &theirs.value;
            difference.place_on(theirs.device(), Dtype::F32, theirs.rows(), theirs.cols());
            difference.copy_from(theirs);
            let kept = mean.of(&mut mine.value);
            difference.add_scaled(kept, -1.0);
            kept.add_scaled(difference, 1.0 - *decay);
            mean.show(&mut mine.value);
        }
    }
}

impl Mean {
    /// The average itself; `value` is the model's.
    fn of<'a>(&'a mut self, value: &'a mut Tensor) -> &'a mut Tensor {
        match self {
            Self::InPlace => value,
            Self::Beside(mean) => mean,
        }
    }

    /// Brings the model's value up to date.
    fn show(&self, value: &mut Tensor) {
        if let Self::Beside(mean) = self {
            value.copy_from(mean);
        }
    }
}

/// Its name in a checkpoint.
fn average_name(parameter: &str) -> String {
    format!("average.{parameter}")
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
            TeacherKind::Ema => Self::Average(Box::new(Average::load(recipe, device)?)),
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
        if let Self::Average(average) = self {
            average.follow(student);
        }
    }

    pub(super) fn store(&self, arrays: &mut BTreeMap<String, Array>) {
        let Self::Average(average) = self else { return };
        for (parameter, mean) in average.model.parameters().into_iter().zip(&average.means) {
            let kept = match mean {
                None => continue,
                Some(Mean::InPlace) => &parameter.value,
                Some(Mean::Beside(mean)) => mean,
            };
            arrays.insert(average_name(&parameter.name), array_of(kept));
        }
    }

    pub(super) fn restore(&mut self, path: &Path, arrays: &BTreeMap<String, Array>) -> Result<()> {
        let Self::Average(average) = self else { return Ok(()) };
        for (parameter, mean) in average.model.parameters_mut().into_iter().zip(&mut average.means) {
            let Some(mean) = mean else { continue };
            copy_array(path, arrays, &average_name(&parameter.name), mean.of(&mut parameter.value))?;
            mean.show(&mut parameter.value);
        }
        Ok(())
    }
}
