//! The vision tower: patches in, image tokens and DeepStack features out.

mod block;
mod merger;

use mgsd_compute::ops::attention::{Layout, Mask};
use mgsd_compute::ops::interpolate;
use mgsd_compute::{Tensor, Write};

use block::{BlockActivations, Common};
pub use block::{Norm, VisionBlock};
pub use merger::Merger;
use merger::MergerActivations;

use crate::batch::Batch;
use crate::config::VisionConfig;
use crate::linear::{Adapter, Linear};
use crate::param::Parameter;
use crate::reduction::Told;
use crate::rope::{RopeTable, vision_picks};
use crate::text::neighbours;
use crate::trace::{Observer, Tap};

/// The whole tower.
pub struct VisionTower {
    /// `[hidden, channels * time * y * x]`
    pub patch_embed: Linear,
    /// `[side * side, hidden]`
    pub pos_embed: Parameter,
    /// From bottom to top.
    pub blocks: Vec<VisionBlock>,
    /// From the last block to the decoder's input.
    pub merger: Merger,
    /// From chosen blocks to the decoder's first layers.
    pub deepstack: Vec<Merger>,
    pub(crate) config: VisionConfig,
}

/// What the tower gives the decoder, `[image tokens, decoder hidden]` each; also their gradients.
pub(crate) struct VisionFeatures {
    pub merged: Tensor,
    pub deepstack: Vec<Tensor>,
}

/// Gradients on their way down; one set for all blocks.
#[derive(Default)]
struct Descent {
    stream: Tensor,
    norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    wide: Tensor,
    bent: Tensor,
    low: Tensor,
}

/// The tower's buffers.
pub(crate) struct VisionActivations {
    table: RopeTable,
    picks: Vec<(usize, usize)>,
    cos: Tensor,
    sin: Tensor,
    patches: Tensor,
    patch_low: Tensor,
    qkv: Tensor,
    streams: Vec<Tensor>,
    blocks: Vec<BlockActivations>,
    mergers: Vec<MergerActivations>,
    descent: Descent,
    pub features: VisionFeatures,
    pub d_features: VisionFeatures,
}

impl VisionFeatures {
    fn new(deepstack: usize) -> Self {
        Self { merged: Tensor::empty(), deepstack: (0..deepstack).map(|_| Tensor::empty()).collect() }
    }
}

impl VisionActivations {
    pub fn new(config: &VisionConfig) -> Self {
        let mergers = config.deepstack_visual_indexes.len();
        Self {
            // Rows and columns share the frequencies of half a head.
            table: RopeTable::new(config.rope_theta, config.head_dim() / 2),
            picks: vision_picks(config.head_dim()),
            cos: Tensor::empty(),
            sin: Tensor::empty(),
            patches: Tensor::empty(),
            patch_low: Tensor::empty(),
            qkv: Tensor::empty(),
            streams: Vec::new(),
            blocks: Vec::new(),
            mergers: (0..=mergers).map(|_| MergerActivations::default()).collect(),
            descent: Descent::default(),
            features: VisionFeatures::new(mergers),
            d_features: VisionFeatures::new(mergers),
        }
    }

    fn reserve(&mut self, blocks: usize) {
        while self.blocks.len() < blocks {
            self.blocks.push(BlockActivations::default());
        }
        while self.streams.len() < blocks + 1 {
            self.streams.push(Tensor::empty());
        }
    }
}

impl VisionTower {
    fn layout<'a>(&self, bounds: &'a [usize]) -> Layout<'a> {
        let (heads, head_dim) = (self.config.num_heads, self.config.head_dim());
        Layout { heads, kv_heads: heads, head_dim, scale: (head_dim as f32).powf(-0.5), mask: Mask::Full, bounds }
    }

    /// From the batch's patches to `acts.features`.
    pub(crate) fn forward(
        &self,
        acts: &mut VisionActivations,
        batch: &Batch,
        adapter: Adapter,
        keep: bool,
        mut observer: Option<Observer<'_>>,
    ) {
        acts.reserve(if keep { self.blocks.len() } else { 1 });
        let VisionActivations {
            table,
            picks,
            cos,
            sin,
            patches,
            patch_low,
            qkv,
            streams,
            blocks,
            mergers,
            features,
            ..
        } = acts;
        let weight = &self.patch_embed.weight.value;
        table.fill(weight.device(), cos, sin, &batch.patch_positions, picks);
        batch.write_patches(patches, weight);
        self.patch_embed.forward(&mut streams[0], patches, patch_low, Write::Set, adapter);
        if let Some(observe) = &mut observer {
            observe(Tap::VisionCos, cos);
            observe(Tap::VisionSin, sin);
            observe(Tap::PatchEmbed, &streams[0]);
        }
        interpolate::forward(&mut streams[0], &self.pos_embed.value, &batch.taps, Write::Add);
        if let Some(observe) = &mut observer {
            observe(Tap::VisionIn, &streams[0]);
        }
        let common = Common { cos, sin, layout: self.layout(&batch.patch_bounds), adapter };
        for (index, block) in self.blocks.iter().enumerate() {
            let (x, out) = neighbours(streams, index, keep);
            let a = &mut blocks[if keep { index } else { 0 }];
            block.forward(a, qkv, x, out, &common);
            if let Some(observe) = &mut observer {
                observe(Tap::VisionMid(index), &a.mid);
                observe(Tap::VisionBlock(index), out);
            }
            for (k, merger) in self.deepstack.iter().enumerate() {
                if self.config.deepstack_visual_indexes[k] == index {
                    merger.forward(&mut mergers[k + 1], &mut features.deepstack[k], out, adapter);
                    if let Some(observe) = &mut observer {
                        observe(Tap::Deepstack(k), &features.deepstack[k]);
                    }
                }
            }
        }
        let top = if keep { self.blocks.len() } else { self.blocks.len() % 2 };
        self.merger.forward(&mut mergers[0], &mut features.merged, &mut streams[top], adapter);
        if let Some(observe) = &mut observer {
            observe(Tap::Merger, &features.merged);
        }
    }

    /// From `acts.d_features` down to the lowest trained parameter.
    pub(crate) fn backward(&mut self, acts: &mut VisionActivations, batch: &Batch, adapter: Adapter, told: &mut Told) {
        let VisionActivations {
            cos,
            sin,
            patches,
            patch_low,
            qkv,
            streams,
            blocks,
            mergers,
            descent: d,
            d_features,
            ..
        } = acts;
        let common = Common { cos, sin, layout: self.layout(&batch.patch_bounds), adapter };
        let count = self.blocks.len();
        let below = self.patch_embed.is_trainable() || self.pos_embed.is_trainable();
        let lowest = if below { 0 } else { self.blocks.iter().position(VisionBlock::is_trainable).unwrap_or(count) };
        self.merger.backward(
            &mergers[0],
            d,
            &d_features.merged,
            &mut streams[count],
            (lowest < count).then_some(Write::Set),
            adapter,
        );
        told.tell(|f| self.merger.visit_mut(f));
        for index in (0..count).rev() {
            let through = index >= lowest;
            for (k, merger) in self.deepstack.iter_mut().enumerate() {
                if self.config.deepstack_visual_indexes[k] == index && (through || merger.is_trainable()) {
                    let write = through.then_some(Write::Add);
                    merger.backward(
                        &mergers[k + 1],
                        d,
                        &d_features.deepstack[k],
                        &mut streams[index + 1],
                        write,
                        adapter,
                    );
                    told.tell(|f| merger.visit_mut(f));
                }
            }
            if through {
                self.blocks[index].backward(&blocks[index], d, qkv, &streams[index], &common, below || index > lowest);
                told.tell(|f| self.blocks[index].visit_mut(f));
            }
        }
        if let Some(grad) = &mut self.pos_embed.grad {
            interpolate::backward(grad, &d.stream, &batch.taps);
        }
        if self.patch_embed.is_trainable() {
            self.patch_embed.backward(None, &d.stream, patches, patch_low, &mut d.low, adapter);
        }
        self.tell_bottom(told);
    }

    /// What is finished last.
    fn tell_bottom(&mut self, told: &mut Told) {
        told.tell(|f| {
            self.patch_embed.visit_mut(f);
            f(&mut self.pos_embed);
        });
    }

    /// Tells of everything in the order of [`backward`](Self::backward).
    pub(crate) fn tell(&mut self, told: &mut Told) {
        told.tell(|f| self.merger.visit_mut(f));
        for (index, block) in self.blocks.iter_mut().enumerate().rev() {
            for (merger, &at) in self.deepstack.iter_mut().zip(&self.config.deepstack_visual_indexes) {
                if at == index {
                    told.tell(|f| merger.visit_mut(f));
                }
            }
            told.tell(|f| block.visit_mut(f));
        }
        self.tell_bottom(told);
    }

    /// Whether any parameter of the tower or its mergers is trained.
    pub fn is_trainable(&self) -> bool {
        let mut any = false;
        self.visit(&mut |p| any |= p.is_trainable());
        any
    }

    /// Patch embedding, position table and blocks.
    pub fn visit_tower_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.patch_embed.visit_mut(f);
        f(&mut self.pos_embed);
        self.blocks.iter_mut().for_each(|block| block.visit_mut(f));
    }

    /// The main merger and those of DeepStack.
    pub fn visit_mergers_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.merger.visit_mut(f);
        self.deepstack.iter_mut().for_each(|merger| merger.visit_mut(f));
    }

    /// Calls `f` with every parameter.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.patch_embed.visit(f);
        f(&self.pos_embed);
        self.blocks.iter().for_each(|block| block.visit(f));
        self.merger.visit(f);
        self.deepstack.iter().for_each(|merger| merger.visit(f));
    }

    /// The same, mutable.
    pub fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        let Self { patch_embed, pos_embed, blocks, merger, deepstack, .. } = self;
        patch_embed.visit_mut(f);
        f(pos_embed);
        blocks.iter_mut().for_each(|block| block.visit_mut(f));
        merger.visit_mut(f);
        deepstack.iter_mut().for_each(|merger| merger.visit_mut(f));
    }
}
