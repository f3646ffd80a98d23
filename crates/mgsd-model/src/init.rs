//! Random first weights, of any size, without holding the model in memory.

use std::f32::consts::TAU;
use std::path::Path;

use rand::RngExt as _;
use rand_pcg::Pcg64;
use rayon::prelude::*;

use crate::config::Config;
use crate::error::Result;
use crate::model::{Fill, Qwen3Vl};
use crate::weights::{CheckpointWriter, copy_folder_files};

/// Numbers drawn from one generator; a tensor has as many generators as it has such pieces.
const PIECE: usize = 1 << 16;

/// Makes a model folder `out` from the configuration (and tokenizer, templates, processor settings) in `config_dir`,
/// with the weights that [`Qwen3Vl::init`] gives for `seed`. Tensors are made and written one at a time, in the
/// configured type and in shards. Returns the number of parameters.
pub fn write_random(config_dir: &Path, out: &Path, seed: u64, shard_bytes: u64) -> Result<usize> {
    let config = Config::open(config_dir)?;
    let specs = Qwen3Vl::specs(&config);
    if config_dir != out {
        copy_folder_files(config_dir, out)?;
    }
    let listed = specs.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = CheckpointWriter::create(out, listed, config.dtype, shard_bytes)?;
    let mut total = 0;
    for (spec, fill) in &specs {
        let count = spec.shape.iter().product();
        writer.write(&spec.name, &values(&spec.name, count, *fill, seed))?;
        total += count;
    }
    writer.finish()?;
    Ok(total)
}

/// The first values of one parameter: a function of its name, its size and the seed alone.
pub(crate) fn values(name: &str, count: usize, fill: Fill, seed: u64) -> Vec<f32> {
    let deviation = match fill {
        Fill::One => return vec![1.0; count],
        Fill::Zero => return vec![0.0; count],
        Fill::Normal { deviation } => deviation,
    };
    let stream = fnv1a(name);
    let mut out = vec![0.0; count];
    out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
        let state = (u128::from(seed) << 64) | piece as u128;
        let mut rng = Pcg64::new(state, stream.into());
        for pair in out.chunks_mut(2) {
            // Box-Muller; 1 - u is never zero.
            let radius = deviation * (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
            let (sin, cos) = (TAU * rng.random::<f32>()).sin_cos();
            pair.iter_mut().zip([cos, sin]).for_each(|(out, turn)| *out = radius * turn);
        }
    });
    out
}

/// A hash that stays the same from version to version.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
