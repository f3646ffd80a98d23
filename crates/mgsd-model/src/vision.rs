//! The vision tower: patches in, image tokens and DeepStack features out.

use mgsd_compute::ops::attention::{self, Layout, Mask};
use mgsd_compute::ops::gelu::{self, Gelu};
use mgsd_compute::ops::{interpolate, layer_norm, rope};
use mgsd_compute::{Tensor, Write};
use rayon::prelude::*;

use crate::batch::Batch;
use crate::config::VisionConfig;
use crate::linear::{Adapter, Linear};
use crate::param::Parameter;
use crate::rope::{RopeTable, vision_picks};
use crate::text::neighbours;
use crate::trace::{Observer, Tap};

/// Every LayerNorm of the tower has this.
const EPS: f32 = 1e-6;

/// LayerNorm with bias.
pub struct Norm {
    /// `[1, width]`
    pub weight: Parameter,
    /// `[1, width]`
    pub bias: Parameter,
}

/// One block: full attention within a frame, then a two-layer feed-forward.
pub struct VisionBlock {
    /// Before attention.
    pub norm1: Norm,
    /// `[3 * hidden, hidden]`: queries, keys, values.
    pub qkv: Linear,
    /// `[hidden, hidden]`
    pub proj: Linear,
    /// Before the feed-forward.
    pub norm2: Norm,
    /// `[intermediate, hidden]`
    pub fc1: Linear,
    /// `[hidden, intermediate]`
    pub fc2: Linear,
}

/// Four patches to one token of the decoder's width.
pub struct Merger {
    /// Over one patch for the main merger, over all four for those of DeepStack.
    pub norm: Norm,
    /// `[4 * hidden, 4 * hidden]`
    pub fc1: Linear,
    /// `[decoder hidden, 4 * hidden]`
    pub fc2: Linear,
}

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

struct BlockActivations {
    attn_in: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    log_sum_exp: Tensor,
    mid: Tensor,
    mlp_in: Tensor,
    wide: Tensor,
    bent: Tensor,
    /// `x Aᵀ` of qkv, proj, fc1, fc2.
    low: [Tensor; 4],
}

struct MergerActivations {
    normed: Tensor,
    wide: Tensor,
    bent: Tensor,
    low: [Tensor; 2],
}

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

/// What all blocks of a pass have in common.
struct Common<'a> {
    cos: &'a Tensor,
    sin: &'a Tensor,
    layout: Layout<'a>,
    adapter: Adapter,
}

impl VisionFeatures {
    fn new(deepstack: usize) -> Self {
        Self { merged: Tensor::empty(), deepstack: (0..deepstack).map(|_| Tensor::empty()).collect() }
    }
}

impl BlockActivations {
    fn new() -> Self {
        Self {
            attn_in: Tensor::empty(),
            q: Tensor::empty(),
            k: Tensor::empty(),
            v: Tensor::empty(),
            attended: Tensor::empty(),
            log_sum_exp: Tensor::empty(),
            mid: Tensor::empty(),
            mlp_in: Tensor::empty(),
            wide: Tensor::empty(),
            bent: Tensor::empty(),
            low: std::array::from_fn(|_| Tensor::empty()),
        }
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
            mergers: (0..=mergers)
                .map(|_| MergerActivations {
                    normed: Tensor::empty(),
                    wide: Tensor::empty(),
                    bent: Tensor::empty(),
                    low: std::array::from_fn(|_| Tensor::empty()),
                })
                .collect(),
            descent: Descent {
                stream: Tensor::empty(),
                norm: Tensor::empty(),
                q: Tensor::empty(),
                k: Tensor::empty(),
                v: Tensor::empty(),
                attended: Tensor::empty(),
                wide: Tensor::empty(),
                bent: Tensor::empty(),
                low: Tensor::empty(),
            },
            features: VisionFeatures::new(mergers),
            d_features: VisionFeatures::new(mergers),
        }
    }

    fn reserve(&mut self, blocks: usize) {
        while self.blocks.len() < blocks {
            self.blocks.push(BlockActivations::new());
        }
        while self.streams.len() < blocks + 1 {
            self.streams.push(Tensor::empty());
        }
    }
}

impl Norm {
    fn forward(&self, out: &mut Tensor, x: &Tensor) {
        layer_norm::forward(out, x, &self.weight.value, &self.bias.value, EPS);
    }

    fn backward(&mut self, dx: &mut Tensor, dout: &Tensor, x: &Tensor, write: Write) {
        let grads = self.weight.grad.as_mut().zip(self.bias.grad.as_mut());
        layer_norm::backward(dx, grads, dout, x, &self.weight.value, EPS, write);
    }

    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.weight);
        f(&self.bias);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.weight);
        f(&mut self.bias);
    }

    fn is_trainable(&self) -> bool {
        self.weight.is_trainable()
    }
}

impl VisionBlock {
    fn forward(&self, a: &mut BlockActivations, qkv: &mut Tensor, x: &Tensor, out: &mut Tensor, common: &Common) {
        let &Common { cos, sin, ref layout, adapter } = common;
        self.norm1.forward(&mut a.attn_in, x);
        self.qkv.forward(qkv, &a.attn_in, &mut a.low[0], Write::Set, adapter);
        split_columns([&mut a.q, &mut a.k, &mut a.v], qkv);
        rope::forward(&mut a.q, cos, sin);
        rope::forward(&mut a.k, cos, sin);
        attention::forward(&mut a.attended, &mut a.log_sum_exp, &a.q, &a.k, &a.v, layout);
        a.mid.copy_from(x);
        self.proj.forward(&mut a.mid, &a.attended, &mut a.low[1], Write::Add, adapter);
        self.norm2.forward(&mut a.mlp_in, &a.mid);
        self.fc1.forward(&mut a.wide, &a.mlp_in, &mut a.low[2], Write::Set, adapter);
        gelu::forward(&mut a.bent, &a.wide, Gelu::Tanh);
        out.copy_from(&a.mid);
        self.fc2.forward(out, &a.bent, &mut a.low[3], Write::Add, adapter);
    }

    /// `d.stream` holds the gradient of the output and receives that of the input.
    fn backward(
        &mut self,
        a: &BlockActivations,
        d: &mut Descent,
        qkv: &mut Tensor,
        x: &Tensor,
        common: &Common,
        through: bool,
    ) {
        let &Common { cos, sin, ref layout, adapter } = common;
        self.fc2.backward(Some((&mut d.bent, Write::Set)), &d.stream, &a.bent, &a.low[3], &mut d.low, adapter);
        gelu::backward(&mut d.wide, &d.bent, &a.wide, Gelu::Tanh);
        self.fc1.backward(Some((&mut d.norm, Write::Set)), &d.wide, &a.mlp_in, &a.low[2], &mut d.low, adapter);
        self.norm2.backward(&mut d.stream, &d.norm, &a.mid, Write::Add);
        self.proj.backward(Some((&mut d.attended, Write::Set)), &d.stream, &a.attended, &a.low[1], &mut d.low, adapter);
        attention::backward(
            &mut d.q,
            &mut d.k,
            &mut d.v,
            &d.attended,
            &a.attended,
            &a.log_sum_exp,
            &a.q,
            &a.k,
            &a.v,
            layout,
        );
        rope::backward(&mut d.q, cos, sin);
        rope::backward(&mut d.k, cos, sin);
        join_columns(qkv, [&d.q, &d.k, &d.v]);
        let into = through || self.norm1.is_trainable();
        self.qkv.backward(into.then_some((&mut d.norm, Write::Set)), qkv, &a.attn_in, &a.low[0], &mut d.low, adapter);
        if into {
            self.norm1.backward(&mut d.stream, &d.norm, x, Write::Add);
        }
    }

    fn is_trainable(&self) -> bool {
        let mut any = false;
        self.visit(&mut |p| any |= p.is_trainable());
        any
    }

    /// The linear layers.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.proj, &self.fc1, &self.fc2]
    }

    /// The same, mutable.
    pub fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.qkv, &mut self.proj, &mut self.fc1, &mut self.fc2]
    }

    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.norm1.visit(f);
        self.norm2.visit(f);
        self.linears().into_iter().for_each(|l| l.visit(f));
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.norm1.visit_mut(f);
        self.norm2.visit_mut(f);
        [&mut self.qkv, &mut self.proj, &mut self.fc1, &mut self.fc2].into_iter().for_each(|l| l.visit_mut(f));
    }
}

impl Merger {
    /// `x: [patches, hidden]`; its shape is changed for the norm over four patches and put back.
    fn forward(&self, a: &mut MergerActivations, out: &mut Tensor, x: &mut Tensor, adapter: Adapter) {
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
    fn backward(
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

    fn is_trainable(&self) -> bool {
        self.norm.is_trainable() || self.fc1.is_trainable() || self.fc2.is_trainable()
    }

    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        self.norm.visit(f);
        self.fc1.visit(f);
        self.fc2.visit(f);
    }

    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        self.norm.visit_mut(f);
        self.fc1.visit_mut(f);
        self.fc2.visit_mut(f);
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
        table.fill(cos, sin, &batch.patch_positions, picks);
        batch.write_patches(patches);
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
    pub(crate) fn backward(&mut self, acts: &mut VisionActivations, batch: &Batch, adapter: Adapter) {
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
                }
            }
            if through {
                self.blocks[index].backward(&blocks[index], d, qkv, &streams[index], &common, below || index > lowest);
            }
        }
        if let Some(grad) = &mut self.pos_embed.grad {
            interpolate::backward(grad, &d.stream, &batch.taps);
        }
        if self.patch_embed.is_trainable() {
            self.patch_embed.backward(None, &d.stream, patches, patch_low, &mut d.low, adapter);
        }
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

/// Another shape for the same numbers in the same order; a tensor of unchanged length keeps them.
fn reshape(tensor: &mut Tensor, rows: usize, cols: usize) {
    assert_eq!(tensor.len(), rows * cols, "a reshape keeps the number of elements");
    tensor.resize(rows, cols);
}

/// Rows worth handing to another thread in one piece.
const ROWS: usize = 256;

/// `x: [rows, 3 * width]` to three `[rows, width]`.
fn split_columns(parts: [&mut Tensor; 3], x: &Tensor) {
    let width = x.cols() / 3;
    for (index, part) in parts.into_iter().enumerate() {
        part.resize(x.rows(), width);
        let blocks = part.as_mut_slice().par_chunks_mut(ROWS * width);
        blocks.zip(x.as_slice().par_chunks(ROWS * 3 * width)).for_each(|(part, x)| {
            for (part, x) in part.chunks_exact_mut(width).zip(x.chunks_exact(3 * width)) {
                part.copy_from_slice(&x[index * width..(index + 1) * width]);
            }
        });
    }
}

/// The inverse of [`split_columns`].
fn join_columns(x: &mut Tensor, parts: [&Tensor; 3]) {
    let width = parts[0].cols();
    x.resize(parts[0].rows(), 3 * width);
    for (index, part) in parts.into_iter().enumerate() {
        let blocks = x.as_mut_slice().par_chunks_mut(ROWS * 3 * width);
        blocks.zip(part.as_slice().par_chunks(ROWS * width)).for_each(|(x, part)| {
            for (x, part) in x.chunks_exact_mut(3 * width).zip(part.chunks_exact(width)) {
                x[index * width..(index + 1) * width].copy_from_slice(part);
            }
        });
    }
}
