//! Gradients of several processes, added up piece by piece while the pass back goes on.
//!
//! A piece is what a pass back finishes at one time: the output projection with the final norm, a layer, the token
//! embedding, a merger, a block, the patch embedding with the position table; of it what is trained. The pieces and
//! their order depend on what is trained, never on the batch, so that all processes add up the same tensors in the same
//! order, whatever they compute meanwhile and whether they compute anything.

use std::collections::HashMap;

use mgsd_compute::Group;

use crate::model::Qwen3Vl;
use crate::param::Parameter;

/// Takes a piece whose gradients nobody else touches for the rest of the step.
pub type Take<'a> = dyn FnMut(&mut [&mut Parameter]) + 'a;

/// Whom a pass back tells of the pieces that it has finished.
pub struct Told<'a>(Option<&'a mut Take<'a>>);

impl<'a> Told<'a> {
    /// Nobody.
    pub fn nobody() -> Self {
        Self(None)
    }

    /// This one.
    pub fn someone(take: &'a mut Take<'a>) -> Self {
        Self(Some(take))
    }

    /// Tells of what is trained among the parameters that `visit` shows, if that is anything.
    pub(crate) fn tell<'p>(&mut self, visit: impl FnOnce(&mut dyn FnMut(&'p mut Parameter))) {
        let Some(take) = &mut self.0 else { return };
        let mut piece = Vec::new();
        visit(&mut |parameter| {
            if parameter.is_trainable() {
                piece.push(parameter);
            }
        });
        if !piece.is_empty() {
            take(&mut piece);
        }
    }
}

/// What is done about the other processes' gradients in one step.
pub struct Reduction<'a> {
    take: Option<&'a mut Take<'a>>,
    begun: bool,
}

impl<'a> Reduction<'a> {
    /// One process: nothing.
    pub fn alone() -> Self {
        Self { take: None, begun: false }
    }

    /// Every piece goes to `take`, once.
    pub fn new(take: &'a mut Take<'a>) -> Self {
        Self { take: Some(take), begun: false }
    }

    /// Whom the last pass back of the step tells.
    pub fn last(&mut self) -> Told<'_> {
        assert!(!self.begun, "gradients are added up in the last pass back of a step only");
        self.begun = true;
        self.told()
    }

    /// Ends the passes of the step: if there was no [`last`](Self::last) one, all pieces are taken now, in the same
    /// order. Comes before anything else that all processes do together.
    pub fn finish(&mut self, model: &mut Qwen3Vl) {
        if !self.begun {
            self.begun = true;
            model.tell(self.told());
        }
    }

    /// Whether all pieces were taken.
    pub fn is_finished(&self) -> bool {
        self.begun
    }

    fn told(&mut self) -> Told<'_> {
        Told(self.take.as_mut().map(|take| &mut **take as _))
    }
}

/// Which process keeps the optimiser's state of which parameter, by name.
pub type Owners = HashMap<String, usize>;

/// Begins to add up the gradients of a piece over all processes; with `owners` each at its owner only.
pub fn start(group: &Group, piece: &mut [&mut Parameter], owners: Option<&Owners>) {
    let grads = piece.iter_mut().filter_map(|parameter| Some((&parameter.name, parameter.grad.as_mut()?)));
    match owners {
        None => group.start_all_reduce(grads.map(|(_, grad)| grad)),
        Some(owners) => group.start_reduce(grads.map(|(name, grad)| (grad, owners[name]))),
    }
}
