//! Speed of training and generation on models of a fixed shape, for `mgsd bench cpu`.

use std::sync::Arc;
use std::time::Instant;

use mgsd_compute::Tensor;
use mgsd_compute::ops::adamw::{self, AdamW};
use mgsd_compute::ops::loss::{self, Grads, TokenStats};

use crate::batch::Batch;
use crate::config::{Config, TextConfig, VisionConfig, WeightDtype};
use crate::error::Result;
use crate::generate::{Generator, Request};
use crate::linear::Adapter;
use crate::model::{Activations, Keep, Parts, Qwen3Vl};
use crate::patches::{Grid, ImagePatches};
use crate::processor::Prompt;
use crate::sampling::Sampling;

/// The decoder that a PyTorch program of the same shape is timed against: 256 wide, 4 layers, 8 query and 4 key heads
/// of 32, 768 inner, 1,024 words, untied.
pub fn peer_config() -> Config {
    config(256, 4, (8, 4), 768, 1024, false)
}

/// A model of the size of the embedded one: decoder 160 wide with 6 layers, tower 96 wide with 4 blocks, tied.
pub fn nano_config() -> Config {
    let mut config = config(160, 6, (5, 5), 416, 512, true);
    config.vision = VisionConfig {
        hidden_size: 96,
        depth: 4,
        num_heads: 3,
        intermediate_size: 256,
        num_position_embeddings: 256,
        deepstack_visual_indexes: vec![0, 1, 2],
        ..config.vision
    };
    config
}

/// Tokens/s (mean and best) of training all weights of [`nano_config`] on about 4,000 packed tokens: `pictures`
/// sequences with a 128 x 128 picture each, the rest text, all of about 100 tokens.
pub fn train_nano(steps: usize, pictures: usize) -> Result<(f64, f64)> {
    let config = nano_config();
    let grid = Grid { t: 1, h: 8, w: 8 };
    let width = config.vision.patch_len();
    let prompts = (0..40usize).map(|row| {
        let mut ids: Vec<u32> = (0..100).map(|at| 3 + ((row * 97 + at * 31) % 500) as u32).collect();
        let mut images = Vec::new();
        if row < pictures {
            ids[4..4 + grid.tokens(2)].fill(config.image_token_id);
            let pixel_values = (0..grid.patches() * width).map(|i| ((i * (row + 1)) as f32 * 0.01).sin()).collect();
            images.push(Arc::new(ImagePatches { pixel_values, grid }));
        }
        Prompt { ids, images }
    });
    let prompts: Vec<Prompt> = prompts.collect();
    Ok(TrainBench::with_prompts(Qwen3Vl::init(&config, 0), &prompts)?.measure(steps))
}

/// A text-only configuration; its vision tower is as small as can be and never runs.
fn config(hidden_size: usize, layers: usize, heads: (usize, usize), inner: usize, vocab: usize, tied: bool) -> Config {
    Config {
        text: TextConfig {
            vocab_size: vocab,
            hidden_size,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: heads.0,
            num_key_value_heads: heads.1,
            head_dim: 32,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            mrope_section: [6, 5, 5],
            max_position_embeddings: 4096,
            initializer_range: 0.02,
        },
        vision: VisionConfig {
            hidden_size: 16,
            depth: 1,
            num_heads: 1,
            intermediate_size: 16,
            out_hidden_size: hidden_size,
            num_position_embeddings: 16,
            patch_size: 16,
            temporal_patch_size: 2,
            spatial_merge_size: 2,
            in_channels: 3,
            deepstack_visual_indexes: vec![0],
            rope_theta: 1e4,
            initializer_range: 0.02,
        },
        tie_word_embeddings: tied,
        image_token_id: 0,
        vision_start_token_id: 1,
        vision_end_token_id: 2,
        eos_token_ids: Vec::new(),
        dtype: WeightDtype::F32,
    }
}

/// Everything that a supervised training step of all weights needs, kept from step to step.
pub struct TrainBench {
    model: Qwen3Vl,
    batch: Batch,
    acts: Activations,
    stats: TokenStats,
    targets: Vec<u32>,
    weights: Vec<f32>,
    d_hidden: Tensor,
    moments: Vec<(Tensor, Tensor)>,
    step: u64,
}

impl TrainBench {
    /// `sequences` of `length` tokens that never change.
    pub fn new(model: Qwen3Vl, sequences: usize, length: usize) -> Result<Self> {
        let vocab = model.config.text.vocab_size as u64;
        let id = |at: u64| (3 + (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 30) % (vocab - 3)) as u32;
        let prompts = (0..sequences as u64)
            .map(|s| Prompt { ids: (0..length as u64).map(|at| id(s * 7919 + at)).collect(), images: Vec::new() });
        let prompts: Vec<Prompt> = prompts.collect();
        Self::with_prompts(model, &prompts)
    }

    /// The given sequences; every token is learned.
    pub fn with_prompts(mut model: Qwen3Vl, prompts: &[Prompt]) -> Result<Self> {
        let vocab = model.config.text.vocab_size as u32;
        model.set_trainable(Parts::ALL);
        let mut batch = Batch::new(&model.config);
        for prompt in prompts {
            batch.push(prompt)?;
        }
        let tokens = batch.tokens();
        let moments = model.parameters().into_iter().map(|p| {
            let zeros = || Tensor::zeros(p.value.rows(), p.value.cols());
            (zeros(), zeros())
        });
        let moments = moments.collect();
        Ok(Self {
            acts: Activations::new(&model.config),
            stats: TokenStats::default(),
            targets: batch.ids.iter().map(|id| (id * 31 + 7) % vocab).collect(),
            weights: vec![1.0 / tokens as f32; tokens],
            d_hidden: Tensor::empty(),
            moments,
            step: 0,
            model,
            batch,
        })
    }

    /// Tokens of one step.
    pub fn tokens(&self) -> usize {
        self.batch.tokens()
    }

    /// Forward, loss, backward, AdamW; returns the loss.
    pub fn step(&mut self) -> f64 {
        self.model.forward(&self.batch, &mut self.acts, Adapter::On, Keep::ForBackward);
        let (head, dhead) = self.model.head_mut();
        let grads = Grads { dhidden: &mut self.d_hidden, dhead };
        let loss =
            loss::cross_entropy(&mut self.stats, self.acts.hidden(), head, &self.targets, &self.weights, Some(grads));
        self.model.backward(&self.batch, &mut self.acts, &self.d_hidden);
        self.step += 1;
        let settings = AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let mut moments = self.moments.iter_mut();
        let step = self.step;
        self.model.visit_mut(&mut |parameter| {
            let Some((first, second)) = moments.next() else { return };
            if let Some(grad) = &mut parameter.grad {
                adamw::step(&mut parameter.value, None, grad, first, second, &settings, step, 1.0);
                grad.fill(0.0);
            }
        });
        loss
    }

    /// Mean and best tokens/s over `steps`, after two steps that do not count.
    pub fn measure(&mut self, steps: usize) -> (f64, f64) {
        self.step();
        self.step();
        let (mut total, mut best) = (0.0, f64::INFINITY);
        for _ in 0..steps.max(1) {
            let start = Instant::now();
            self.step();
            let seconds = start.elapsed().as_secs_f64();
            total += seconds;
            best = best.min(seconds);
        }
        let tokens = self.tokens() as f64;
        (tokens * steps.max(1) as f64 / total, tokens / best)
    }
}

/// Mean and best tokens/s of training the peer's decoder on 8 sequences of 256 tokens.
pub fn train(steps: usize) -> Result<(f64, f64)> {
    Ok(TrainBench::new(Qwen3Vl::init(&peer_config(), 0), 8, 256)?.measure(steps))
}

/// Tokens/s of decoding with the peer's decoder: `rows` sequences after 64 prompt tokens each, greedy, 128 new tokens
/// each. The prompts' pass is not counted.
pub fn decode(rows: usize) -> Result<f64> {
    decode_with(&Qwen3Vl::init(&peer_config(), 0), rows, 64, 128)
}

/// Tokens/s of greedy decoding, without the prompts' pass and the first token that comes of it.
pub fn decode_with(model: &Qwen3Vl, rows: usize, prompt: usize, new_tokens: usize) -> Result<f64> {
    let mut generator = Generator::new(&model.config, rows);
    generator.reserve(prompt + new_tokens);
    let request = Request {
        prompt: Arc::new(Prompt { ids: vec![3; prompt], images: Vec::new() }),
        sampling: Sampling::greedy(),
        max_new_tokens: new_tokens,
        stop: Vec::new(),
    };
    for _ in 0..rows {
        generator.submit(request.clone())?;
    }
    // One step runs the prompts and one decoding step.
    generator.step(model, Adapter::On, &mut |_| {})?;
    let start = Instant::now();
    let mut tokens = 0;
    while !generator.is_idle() {
        generator.step(model, Adapter::On, &mut |_| tokens += 1)?;
    }
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}
