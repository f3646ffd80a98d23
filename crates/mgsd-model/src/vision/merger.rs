//! From patches to tokens of the decoder.

use mgsd_compute::ops::gelu::{self, Gelu};
use mgsd_compute::{Tensor, Write};

use super::Descent;
use super::block::Norm;
use crate::linear::{Adapter, Linear};
use crate::param::Parameter;

/// Four patches to one token of the decoder's width.
pub struct Merger {
    /// Over one patch for the main merger, over all four for those of DeepStack.
    pub norm: Norm,
    /// `[4 * hidden, 4 * hidden]`
    pub fc1: Linear,
    /// `[decoder hidden, 4 * hidden]`
    pub fc2: Linear,
}

/// What a merger leaves for its pass back.
#[derive(Default)]
pub(super) struct MergerActivations {
    pub(super) normed: Tensor,
    pub(super) wide: Tensor,
    pub(super) bent: Tensor,
    pub(super) low: [Tensor; 2],
}

impl Merger {
    /// `x: [patches, hidden]`; its shape is changed for the norm over four patches and put back.
    pub(super) fn forward(&self, a: &mut MergerActivations, out: &mut Tensor, x: &mut Tensor, adapter: Adapter) {
        let (patches, width) = (x.rows(), x.cols());
        let unit = self.fc1.weight.value.cols() / width;
        let grouped = self.norm.weight.value.cols() != width;
        if grouped {
            reshape(x, patches / unit, width * unit);
        }
        self.norm.forward(&mut a.normed, x);
        reshape(x, patches, width);
        reshape(&mut a.normed, patches / unit, width * unit);
        self.fc1.forward(&mut a.wide, &a.normed, &mut a.low[0], Write::Set, adapter);
        gelu::forward(&mut a.bent, &a.wide, Gelu::Erf);
        self.fc2.forward(out, &a.bent, &mut a.low[1], Write::Set, adapter);
    }

    /// `d.stream` receives the gradient of `x: [patches, hidden]`; `write` is `None` when nothing below wants it.
    pub(super) fn backward(
        &mut self,
        a: &MergerActivations,
        d: &mut Descent,
        dout: &Tensor,
        x: &mut Tensor,
        write: Option<Write>,
        adapter: Adapter,
    ) {
        let into = write.is_some() || self.norm.is_trainable();
        let write = write.unwrap_or(Write::Set);
        let bent = into || self.fc1.is_trainable();
        self.fc2.backward(bent.then_some((&mut d.bent, Write::Set)), dout, &a.bent, &a.low[1], &mut d.low, adapter);
        if !bent {
            return;
        }
        gelu::backward(&mut d.wide, &d.bent, &a.wide, Gelu::Erf);
        self.fc1.backward(
            into.then_some((&mut d.norm, Write::Set)),
            &d.wide,
            &a.normed,
            &a.low[0],
            &mut d.low,
            adapter,
        );
        if !into {
            return;
        }
        let (patches, width) = (x.rows(), x.cols());
        let span = self.norm.weight.value.cols();
        let rows = patches * width / span;
        reshape(&mut d.norm, rows, span);
        reshape(x, rows, span);
        if write == Write::Add {
            reshape(&mut d.stream, rows, span);
        }
        self.norm.backward(&mut d.stream, &d.norm, x, write);
        reshape(x, patches, width);
        reshape(&mut d.stream, patches, width);
    }

    pub(super) fn is_trainable(&self) -> bool {
        self.norm.is_trainable() || self.fc1.is_trainable() || self.fc2.is_trainable()
    }

    pub(super) fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.norm.visit(f);
        self.fc1.visit(f);
        self.fc2.visit(f);
    }

    pub(super) fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.norm.visit_mut(f);
        self.fc1.visit_mut(f);
        self.fc2.visit_mut(f);
    }
}

/// Another shape for the same numbers in the same order; a tensor of unchanged length keeps them.
fn reshape(tensor: &mut Tensor, rows: usize, cols: usize) {
    assert_eq!(tensor.len(), rows * cols, "a reshape keeps the number of elements");
    tensor.resize(rows, cols);
}
