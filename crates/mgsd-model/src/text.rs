//! The text decoder: pre-norm layers of grouped-query attention and a gated feed-forward, on packed sequences.
//!
//! A pass forward keeps in `TextActivations` what the pass back needs; without a pass back, all layers share one set
//! of buffers.

use mgsd_compute::ops::attention::{self, KvCache, Layout, Mask};
use mgsd_compute::ops::head_norm::{self, HeadNorm};
use mgsd_compute::ops::linear::few;
use mgsd_compute::ops::linear::layer::{self, Between};
use mgsd_compute::ops::{embedding, rms_norm, rows, swiglu};
use mgsd_compute::{Tensor, Write};

use crate::batch::Batch;
use crate::config::TextConfig;
use crate::linear::{Adapter, Linear};
use crate::model::Keep;
use crate::param::Parameter;
use crate::prefill::Copies;
use crate::reduction::Told;
use crate::trace::{Observer, Tap};
use crate::vision::VisionFeatures;

mod activations;

pub use activations::Recompute;
use activations::{CheapActivations, Cut, Descent, LayerActivations, places};
pub(crate) use activations::{TextActivations, neighbours};

/// One decoder layer.
pub struct TextLayer {
    /// RMSNorm before attention.
    pub input_norm: Parameter,
    /// `[heads * head_dim, hidden]`
    pub q: Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub k: Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub v: Linear,
    /// RMSNorm of each query head, before the rotation.
    pub q_norm: Parameter,
    /// RMSNorm of each key head, before the rotation.
    pub k_norm: Parameter,
    /// `[hidden, heads * head_dim]`
    pub o: Linear,
    /// RMSNorm before the feed-forward.
    pub post_norm: Parameter,
    /// `[intermediate, hidden]`
    pub gate: Linear,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
}

/// The decoder with its embedding and output projection.
pub struct TextDecoder {
    /// `[vocab, hidden]`
    pub embeddings: Parameter,
    /// From bottom to top.
    pub layers: Vec<TextLayer>,
    /// RMSNorm after the last layer.
    pub norm: Parameter,
    /// `[vocab, hidden]`; `None` when the embedding is also the output projection.
    pub head: Option<Parameter>,
    pub(crate) config: TextConfig,
}

/// How the tokens of a pass see each other.
pub(crate) enum Pass<'a> {
    /// Whole sequences, nothing kept.
    Packed { bounds: &'a [usize] },
    /// Whole sequences whose keys and values go to the caches, token `i` to `slots[i]`, `places[i]`, and to further
    /// slots as `copies` say.
    Prefill { bounds: &'a [usize], caches: &'a mut [KvCache], slots: &'a [u32], places: &'a [u32], copies: &'a Copies },
    /// One token a sequence; `lengths[i] = places[i] + 1`.
    Decode { caches: &'a mut [KvCache], slots: &'a [u32], places: &'a [u32], lengths: &'a [u32] },
}

/// What all layers of a pass have in common.
struct Common<'a> {
    cos: &'a Tensor,
    sin: &'a Tensor,
    eps: f32,
    adapter: Adapter,
    /// Whether what a pass back reads is wanted.
    between: Between,
}

/// The tokens of a pass.
pub(crate) struct Input<'a> {
    pub ids: &'a [u32],
    /// Time, height and width of every token; `None`: the rotary tables are filled already.
    pub positions: Option<&'a [[u32; 3]]>,
    /// Rows that image features replace, and the features.
    pub features: Option<(&'a [u32], &'a VisionFeatures)>,
    /// Rows whose result is wanted; `None`: all.
    pub rows: Option<&'a [u32]>,
}

impl TextLayer {
    /// Attention's inputs: norm, projections, norm and rotation of heads.
    fn project(&self, a: &mut LayerActivations, c: &mut CheapActivations, x: &Tensor, common: &Common) {
        let Common { eps, adapter, between, .. } = *common;
        rms_norm::forward(&mut c.attn_in, x, &self.input_norm.value, eps);
        let [low_q, low_k, low_v, ..] = &mut a.low;
        let layers = [&self.q, &self.k, &self.v].map(|layer| layer.layer(adapter));
        layer::heads(
            [&mut c.q, &mut c.k, &mut a.v],
            [&mut a.q_raw, &mut a.k_raw],
            between,
            &c.attn_in,
            layers,
            [low_q, low_k, low_v],
            &self.head_norm(common),
        );
    }

    /// Norm and projections of attention's inputs in a decoding step, which keeps nothing for a pass back.
    fn project_few(&self, a: &mut LayerActivations, x: &Tensor, scratch: &mut few::Scratch, common: &Common) {
        let Common { eps, adapter, .. } = *common;
        let norm = few::Norm { weight: &self.input_norm.value, eps };
        let layers = [&self.q, &self.k, &self.v].map(|layer| layer.layer(adapter));
        few::project(&mut [&mut a.q_raw, &mut a.k_raw, &mut a.v], x, Some(norm), &layers, scratch);
    }

    /// [`finish`](Self::finish) of a decoding step.
    fn finish_few(
        &self,
        a: &mut LayerActivations,
        c: &mut CheapActivations,
        x: &Tensor,
        out: &mut Tensor,
        scratch: &mut few::Scratch,
        common: &Common,
    ) {
        let Common { eps, adapter, .. } = *common;
        let norm = few::Norm { weight: &self.post_norm.value, eps };
        few::project_add(&mut a.mid, x, &a.attended, self.o.layer(adapter), scratch);
        few::gate_up(&mut c.gated, &a.mid, Some(norm), self.gate.layer(adapter), self.up.layer(adapter), scratch);
        few::project_add(out, &a.mid, &c.gated, self.down.layer(adapter), scratch);
    }

    fn head_norm<'a>(&'a self, common: &Common<'a>) -> HeadNorm<'a> {
        let (q_weight, k_weight) = (&self.q_norm.value, &self.k_norm.value);
        HeadNorm { q_weight, k_weight, cos: common.cos, sin: common.sin, eps: common.eps }
    }

    /// Output projection and feed-forward, each added to the stream: `out = mid + mlp(mid)`, `mid = x + o(attended)`. With
    /// a `cut`, of its rows alone.
    fn finish(
        &self,
        a: &mut LayerActivations,
        c: &mut CheapActivations,
        x: &Tensor,
        cut: Option<&Cut>,
        out: &mut Tensor,
        common: &Common,
    ) {
        let Common { eps, adapter, between, .. } = *common;
        let (x, attended) = cut.map_or((x, &a.attended), |cut| (&cut.x, &cut.attended));
        self.o.forward_onto(&mut a.mid, x, attended, &mut a.low[3], adapter);
        rms_norm::forward(&mut c.mlp_in, &a.mid, &self.post_norm.value, eps);
        let [.., low_gate, low_up, _] = &mut a.low;
        let layers = [self.gate.layer(adapter), self.up.layer(adapter)];
        layer::gate_up(&mut c.gated, [&mut a.gate, &mut a.up], between, &c.mlp_in, layers, [low_gate, low_up]);
        self.down.forward_onto(out, &a.mid, &c.gated, &mut a.low[6], adapter);
    }

    /// Makes `c` again from what was kept, but for what [`backward`](Self::backward) makes on its way.
    fn remake(&self, a: &LayerActivations, c: &mut CheapActivations, x: &Tensor, common: &Common) {
        let Common { eps, .. } = *common;
        rms_norm::forward(&mut c.attn_in, x, &self.input_norm.value, eps);
        head_norm::forward(&mut c.q, &mut c.k, &a.q_raw, &a.k_raw, &self.head_norm(common));
        rms_norm::forward(&mut c.mlp_in, &a.mid, &self.post_norm.value, eps);
    }

    /// `d.stream` holds the gradient of the layer's output (with a `cut`, of its rows) and receives that of its input,
    /// unless `through` is false (nothing below is trained), when it is left incomplete. `remade`: `c` comes from
    /// [`remake`](Self::remake).
    #[allow(clippy::too_many_arguments)]
    fn backward(
        &mut self,
        (a, c): (&LayerActivations, &mut CheapActivations),
        d: &mut Descent,
        x: &Tensor,
        cut: Option<&Cut>,
        common: &Common,
        layout: &Layout,
        through: bool,
        remade: bool,
    ) {
        let Common { cos, sin, eps, adapter, .. } = *common;
        let attention_trained = through || self.attention_trained();
        let mid_wanted = attention_trained || self.post_norm.is_trainable();
        let mlp_wanted = mid_wanted || self.gate.is_trainable() || self.up.is_trainable();
        let d_gated = mlp_wanted.then_some((&mut d.gated, Write::Set));
        let [low, low_more, low_last] = &mut d.low;
        Linear::backward_inputs([(&mut self.down, &d.stream, &a.low[6], &mut *low)], d_gated, adapter);
        if mlp_wanted {
            let again = remade.then_some(&mut c.gated);
            swiglu::backward(&mut d.gate, &mut d.up, again, &d.gated, &a.gate, &a.up);
        } else if remade {
            swiglu::forward(&mut c.gated, &a.gate, &a.up);
        }
        Linear::backward_weights([(&mut self.down, &d.stream, low)], &c.gated, adapter);
        if mlp_wanted {
            let into = mid_wanted.then_some((&mut d.norm, Write::Set));
            let Self { gate, up, .. } = self;
            let layers = [(&mut *gate, &d.gate, &a.low[4], &mut *low), (&mut *up, &d.up, &a.low[5], &mut *low_more)];
            Linear::backward_inputs(layers, into, adapter);
            Linear::backward_weights([(gate, &d.gate, low), (up, &d.up, low_more)], &c.mlp_in, adapter);
        }
        if mid_wanted {
            rms_norm::backward(
                &mut d.stream,
                self.post_norm.grad.as_mut(),
                &d.norm,
                &a.mid,
                &self.post_norm.value,
                eps,
                Write::Add,
            );
        }
        if !attention_trained {
            return;
        }
        match cut {
            None => {
                let into = Some((&mut d.attended, Write::Set));
                self.o.backward(into, &d.stream, &a.attended, &a.low[3], low, adapter);
            }
            Some(cut) => {
                let into = Some((&mut d.few, Write::Set));
                self.o.backward(into, &d.stream, &cut.attended, &a.low[3], low, adapter);
                cut.spread(&mut d.attended, &d.few, x.rows());
                std::mem::swap(&mut d.few, &mut d.stream);
                cut.spread(&mut d.stream, &d.few, x.rows());
            }
        }
        attention::backward(
            &mut d.q,
            &mut d.k,
            &mut d.v,
            &d.attended,
            &a.attended,
            &a.log_sum_exp,
            &c.q,
            &c.k,
            &a.v,
            layout,
        );
        let (q_weight, k_weight) = (&self.q_norm.value, &self.k_norm.value);
        let norm = HeadNorm { q_weight, k_weight, cos, sin, eps };
        let weights = [self.q_norm.grad.as_mut(), self.k_norm.grad.as_mut()];
        head_norm::backward(&mut d.q_raw, &mut d.k_raw, weights, &mut d.q, &mut d.k, &a.q_raw, &a.k_raw, &norm);
        let into = through || self.input_norm.is_trainable();
        let Self { q, k, v, .. } = self;
        let layers = [
            (&mut *q, &d.q_raw, &a.low[0], &mut *low),
            (&mut *k, &d.k_raw, &a.low[1], &mut *low_more),
            (&mut *v, &d.v, &a.low[2], &mut *low_last),
        ];
        Linear::backward_inputs(layers, into.then_some((&mut d.norm, Write::Set)), adapter);
        let layers = [(q, &d.q_raw, &*low), (k, &d.k_raw, low_more), (v, &d.v, low_last)];
        Linear::backward_weights(layers, &c.attn_in, adapter);
        if into {
            rms_norm::backward(
                &mut d.stream,
                self.input_norm.grad.as_mut(),
                &d.norm,
                x,
                &self.input_norm.value,
                eps,
                Write::Add,
            );
        }
    }

    fn attention_trained(&self) -> bool {
        [&self.q, &self.k, &self.v, &self.o].iter().any(|l| l.is_trainable())
            || [&self.input_norm, &self.q_norm, &self.k_norm].iter().any(|p| p.is_trainable())
    }

    fn is_trainable(&self) -> bool {
        let mut any = false;
        self.visit(&mut |p| any |= p.is_trainable());
        any
    }

    /// The linear layers in the order q, k, v, o, gate, up, down.
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// The same, mutable.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    /// Calls `f` with every parameter of the layer.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        [&self.input_norm, &self.q_norm, &self.k_norm, &self.post_norm].into_iter().for_each(&mut *f);
        self.linears().into_iter().for_each(|l| l.visit(f));
    }

    /// The same, mutable.
    pub fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        let Self { input_norm, q, k, v, q_norm, k_norm, o, post_norm, gate, up, down } = self;
        [input_norm, q_norm, k_norm, post_norm].into_iter().for_each(&mut *f);
        [q, k, v, o, gate, up, down].into_iter().for_each(|l| l.visit_mut(f));
    }
}

impl TextDecoder {
    /// The output projection: `[vocab, hidden]`.
    pub fn head(&self) -> &Parameter {
        self.head.as_ref().unwrap_or(&self.embeddings)
    }

    fn layout<'a>(&self, bounds: &'a [usize]) -> Layout<'a> {
        let c = &self.config;
        Layout {
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            scale: (c.head_dim as f32).powf(-0.5),
            mask: Mask::Causal,
            bounds,
        }
    }

    /// Runs the decoder over `input`; the result is `acts.normed`. Image features replace the embeddings at their rows
    /// and are added again after the first layers (DeepStack). `keep` holds on to what [`backward`](Self::backward)
    /// needs.
    pub(crate) fn forward(
        &self,
        acts: &mut TextActivations,
        input: Input,
        mut pass: Pass,
        adapter: Adapter,
        keep: Keep,
        mut observer: Option<Observer<'_>>,
    ) {
        let device = self.embeddings.value.device();
        let keep = keep == Keep::ForBackward;
        match keep {
            true => acts.reserve(self.layers.len(), acts.chosen.unwrap_or(Recompute::usual(device))),
            false => acts.reserve(1, Recompute::Nothing),
        }
        if let Some(positions) = input.positions {
            acts.turn(device, positions);
        }
        let TextActivations { cos, sin, streams, layers, cheap, normed, cut, few: scratch, copied, .. } = acts;
        // DeepStack adds to the outputs of the first layers.
        let deep = input.features.map_or(0, |(_, features)| features.deepstack.len());
        cut.begin(input.rows, deep < self.layers.len());
        embedding::forward(&mut streams[0], input.ids, &self.embeddings.value);
        if let Some((rows, features)) = input.features {
            rows::scatter(&mut streams[0], &features.merged, rows, Write::Set);
        }
        if let Some(observe) = &mut observer {
            observe(Tap::TextCos, cos);
            observe(Tap::TextSin, sin);
            observe(Tap::Embedded, &streams[0]);
        }
        let few = matches!(pass, Pass::Decode { .. });
        // Also kept where layers run again, so that they do the same then.
        let between = if keep || observer.is_some() { Between::Kept } else { Between::Dropped };
        let common = Common { cos, sin, eps: self.config.rms_norm_eps, adapter, between };
        for (index, layer) in self.layers.iter().enumerate() {
            let (a, c) = places(layers, cheap, index, keep);
            let (x, out) = neighbours(streams, index, keep);
            match few {
                true => layer.project_few(a, x, scratch, &common),
                false => layer.project(a, c, x, &common),
            }
            self.attend((a, c), index, &mut pass, &common, copied);
            if let Some(observe) = &mut observer {
                // Between norm and rotation, where an ordinary pass keeps nothing.
                let mut normed = Tensor::empty();
                rms_norm::forward(&mut normed, &a.q_raw, &layer.q_norm.value, common.eps);
                observe(Tap::QueryNorm(index), &normed);
                rms_norm::forward(&mut normed, &a.k_raw, &layer.k_norm.value, common.eps);
                observe(Tap::KeyNorm(index), &normed);
            }
            if few {
                layer.finish_few(a, c, x, out, scratch, &common);
            } else {
                let here = cut.is_in(index, self.layers.len());
                if here {
                    cut.take(x, Some(&a.attended));
                }
                layer.finish(a, c, x, here.then_some(&*cut), out, &common);
            }
            if let Some(observe) = &mut observer {
                observe(Tap::LayerIn(index), x);
                observe(Tap::LayerMid(index), &a.mid);
                observe(Tap::LayerOut(index), out);
            }
            if let Some((rows, features)) = input.features
                && let Some(feature) = features.deepstack.get(index)
            {
                rows::scatter(out, feature, rows, Write::Add);
            }
        }
        let mut top = &streams[if keep { self.layers.len() } else { self.layers.len() % 2 }];
        if cut.rows.is_some() && !cut.in_layer {
            cut.take(top, None);
            top = &cut.x;
        }
        rms_norm::forward(normed, top, &self.norm.value, common.eps);
        if let Some(observe) = &mut observer {
            observe(Tap::BeforeFinalNorm, top);
            observe(Tap::FinalNorm, normed);
        }
    }

    /// Attention of layer `index`; in a decoding step head norms and rotation too.
    fn attend(
        &self,
        (a, c): (&mut LayerActivations, &mut CheapActivations),
        index: usize,
        pass: &mut Pass,
        common: &Common,
        copied: &mut [Tensor; 2],
    ) {
        if let Pass::Decode { caches, slots, places, lengths } = pass {
            let (normed, raw) = ([&mut c.q, &mut c.k], [&a.q_raw, &a.k_raw, &a.v]);
            let norm = self.layers[index].head_norm(common);
            let scale = self.layout(&[]).scale;
            attention::decode_step(
                &mut a.attended,
                normed,
                &mut caches[index],
                raw,
                &norm,
                slots,
                places,
                lengths,
                scale,
            );
            return;
        }
        let bounds = match pass {
            Pass::Packed { bounds } => *bounds,
            Pass::Prefill { bounds, caches, slots, places, copies } => {
                caches[index].store(&c.k, &a.v, slots, places);
                copies.store(&mut caches[index], &c.k, &a.v, copied);
                *bounds
            }
            Pass::Decode { .. } => &[],
        };
        attention::forward(&mut a.attended, &mut a.log_sum_exp, &c.q, &c.k, &a.v, &self.layout(bounds));
    }

    /// From the gradient of `acts.normed` down to the lowest trained parameter. `d_features` receives the gradient of
    /// the image features when something of the vision tower is trained.
    pub(crate) fn backward(
        &mut self,
        acts: &mut TextActivations,
        batch: &Batch,
        d_normed: &Tensor,
        mut d_features: Option<&mut VisionFeatures>,
        adapter: Adapter,
        told: &mut Told,
    ) {
        let eps = self.config.rms_norm_eps;
        let common = Common { cos: &acts.cos, sin: &acts.sin, eps, adapter, between: Between::Kept };
        let count = self.layers.len();
        let below = d_features.is_some() || self.embeddings.is_trainable();
        let lowest = if below { 0 } else { self.layers.iter().position(TextLayer::is_trainable).unwrap_or(count) };
        if lowest == count && !below && !self.norm.is_trainable() {
            self.tell_top(told);
            return;
        }
        let (d, cut, tokens) = (&mut acts.descent, &acts.cut, batch.tokens());
        let over = cut.rows.is_some() && !cut.in_layer;
        let (into, top) = match over {
            true => (&mut d.few, &cut.x),
            false => (&mut d.stream, &acts.streams[count]),
        };
        rms_norm::backward(into, self.norm.grad.as_mut(), d_normed, top, &self.norm.value, eps, Write::Set);
        if over {
            cut.spread(&mut d.stream, &d.few, tokens);
        }
        self.tell_top(told);
        for index in (lowest..count).rev() {
            if let Some(features) = &mut d_features
                && let Some(feature) = features.deepstack.get_mut(index)
            {
                rows::gather(feature, &d.stream, &batch.image_rows);
            }
            let layout = self.layout(&batch.bounds);
            let (a, c) = places(&mut acts.layers, &mut acts.cheap, index, true);
            let x = &acts.streams[index];
            let cut = cut.is_in(index, count).then_some(cut);
            match acts.recompute {
                Recompute::Nothing => {}
                Recompute::Cheap => self.layers[index].remake(a, c, x, &common),
                Recompute::Layers => {
                    self.layers[index].project(a, c, x, &common);
                    let mut pass = Pass::Packed { bounds: &batch.bounds };
                    self.attend((a, c), index, &mut pass, &common, &mut acts.copied);
                    self.layers[index].finish(a, c, x, cut, &mut d.again, &common);
                }
            }
            let (through, remade) = (below || index > lowest, acts.recompute == Recompute::Cheap);
            self.layers[index].backward((a, c), d, x, cut, &common, &layout, through, remade);
            told.tell(|f| self.layers[index].visit_mut(f));
        }
        if let Some(features) = d_features {
            rows::gather(&mut features.merged, &d.stream, &batch.image_rows);
        }
        if let Some(grad) = &mut self.embeddings.grad {
            if !batch.image_rows.is_empty() {
                // The embeddings of replaced tokens went nowhere. A placeholder that the model itself has generated
                // was not replaced, so that skipping by id would be wrong.
                d.nothing.place(&d.stream, batch.image_rows.len(), d.stream.cols());
                d.nothing.fill(0.0);
                rows::scatter(&mut d.stream, &d.nothing, &batch.image_rows, Write::Set);
            }
            embedding::backward(grad, &batch.ids, &d.stream, None);
        }
        told.tell(|f| f(&mut self.embeddings));
    }

    /// What is finished first. The head's gradient is the losses' work, unless it is the embedding.
    fn tell_top(&mut self, told: &mut Told) {
        told.tell(|f| {
            f(&mut self.norm);
            self.head.iter_mut().for_each(f);
        });
    }

    /// Tells of everything in the order of [`backward`](Self::backward).
    pub(crate) fn tell(&mut self, told: &mut Told) {
        self.tell_top(told);
        self.layers.iter_mut().rev().for_each(|layer| told.tell(|f| layer.visit_mut(f)));
        told.tell(|f| f(&mut self.embeddings));
    }

    /// Calls `f` with every parameter, from the embedding up.
    pub fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Parameter)) {
        f(&self.embeddings);
        self.layers.iter().for_each(|layer| layer.visit(f));
        f(&self.norm);
        self.head.iter().for_each(f);
    }

    /// The same, mutable.
    pub fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Parameter)) {
        f(&mut self.embeddings);
        self.layers.iter_mut().for_each(|layer| layer.visit_mut(f));
        f(&mut self.norm);
        self.head.iter_mut().for_each(f);
    }
}
