//! The kernel of whole decoding steps against the operations that it stands for.

use super::{Case, Numbers, angles, gpu};
use mgsd_compute::ops::attention::{self, KvCache};
use mgsd_compute::ops::decode_layers::{self, Layer, Rows, Settings};
use mgsd_compute::ops::head_norm::HeadNorm;
use mgsd_compute::ops::linear::{LowRank, few};
use mgsd_compute::{Dtype, Tensor};

/// Sizes of a step, and the adapters' rank.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    inter: usize,
    rank: usize,
}

const HEAD: usize = 128;
const SETTINGS: Settings = Settings { eps: 1e-6, scale: 0.088 };

/// Weights on one device.
struct Weights {
    norms: [Tensor; 2],
    head_norms: [Tensor; 2],
    linears: Vec<Tensor>,
    /// First and second halves; not every layer has one.
    adapters: Vec<Option<(Tensor, Tensor)>>,
}

impl Weights {
    /// The same on the CPU and on the GPU.
    fn pair(n: &mut Numbers, case: Case, shape: Shape) -> (Weights, Weights) {
        let Shape { hidden, heads, kv_heads, inter, rank, .. } = shape;
        let (q, kv) = (heads * HEAD, kv_heads * HEAD);
        let shapes =
            [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (inter, hidden), (inter, hidden), (hidden, inter)];
        let mut both = (Vec::new(), Vec::new());
        let mut low = (Vec::new(), Vec::new());
        for (index, (outputs, inputs)) in shapes.into_iter().enumerate() {
            let (cpu, gpu) = case.pair(n.tensor(outputs, inputs, (inputs as f32).powf(-0.5)));
            both.0.push(cpu);
            both.1.push(gpu);
            let there = rank > 0 && (rank == 8 || index % 3 != 1);
            let a = there.then(|| case.pair(n.tensor(rank, inputs, (inputs as f32).powf(-0.5))));
            let b = there.then(|| case.pair(n.tensor(outputs, rank, 0.3)));
            let (a, b) = (a.unzip(), b.unzip());
            low.0.push(a.0.zip(b.0));
            low.1.push(a.1.zip(b.1));
        }
        let mut vector = |width| {
            let near_one = n.tensor(1, width, 0.2).to_vec().iter().map(|x| 1.0 + x).collect();
            case.exact(Tensor::from_vec(1, width, near_one))
        };
        let [(a, ag), (b, bg)] = [vector(hidden), vector(hidden)];
        let [(c, cg), (d, dg)] = [vector(HEAD), vector(HEAD)];
        (
            Weights { norms: [a, b], head_norms: [c, d], linears: both.0, adapters: low.0 },
            Weights { norms: [ag, bg], head_norms: [cg, dg], linears: both.1, adapters: low.1 },
        )
    }

    fn layer(&self) -> Layer<'_> {
        let linear = |index: usize| few::Layer {
            weight: &self.linears[index],
            bias: None,
            adapter: self.adapters[index].as_ref().map(|(a, b)| LowRank { a, b, scale: 2.0 }),
        };
        Layer {
            norms: [&self.norms[0], &self.norms[1]],
            head_norms: [&self.head_norms[0], &self.head_norms[1]],
            linears: std::array::from_fn(linear),
        }
    }
}

/// One operation after another.
fn apart(x: &Tensor, layers: &[Layer], caches: &mut [KvCache], rows: &Rows) -> Tensor {
    let mut scratch = few::Scratch::new();
    let places: Vec<u32> = rows.lengths.iter().map(|length| length.wrapping_sub(1)).collect();
    let [mut q, mut k, mut v, mut attended, mut mid, mut gated] = [(); 6].map(|()| Tensor::empty());
    let (mut out, mut q_normed, mut k_normed) = (Tensor::empty(), Tensor::empty(), Tensor::empty());
    for (index, (layer, cache)) in layers.iter().zip(caches).enumerate() {
        let previous = std::mem::take(&mut out);
        let x = if index == 0 { x } else { &previous };
        let [input, post] = layer.norms.map(|weight| few::Norm { weight, eps: SETTINGS.eps });
        let [ql, kl, vl, o, gate, up, down] = layer.linears;
        few::project(&mut [&mut q, &mut k, &mut v], x, Some(input), &[ql, kl, vl], &mut scratch);
        let [q_weight, k_weight] = layer.head_norms;
        let norm = HeadNorm { q_weight, k_weight, cos: rows.cos, sin: rows.sin, eps: SETTINGS.eps };
        let (normed, raw) = ([&mut q_normed, &mut k_normed], [&q, &k, &v]);
        let (slots, lengths) = (rows.slots, rows.lengths);
        attention::decode_step(&mut attended, normed, cache, raw, &norm, slots, &places, lengths, SETTINGS.scale);
        few::project_add(&mut mid, x, &attended, o, &mut scratch);
        few::gate_up(&mut gated, &mid, Some(post), gate, up, &mut scratch);
        few::project_add(&mut out, &mid, &gated, down, &mut scratch);
    }
    out
}

fn distance(from: &Tensor, to: &Tensor) -> f64 {
    let (from, to) = (from.to_vec(), to.to_vec());
    let square = |x: f64| x * x;
    let difference: f64 = from.iter().zip(&to).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (difference / from.iter().map(|a| square(f64::from(*a))).sum::<f64>()).sqrt()
}

#[test]
fn layers_of_a_decoding_step() {
    let Some((device, _turn)) = gpu("layers_of_a_decoding_step") else { return };
    let case = Case { device, dtype: Dtype::Bf16 };
    let mut n = Numbers(30);
    let small = Shape { layers: 3, hidden: 192, heads: 4, kv_heads: 1, inter: 320, rank: 0 };
    let large = Shape { layers: 1, hidden: 2560, heads: 32, kv_heads: 8, inter: 9728, rank: 0 };
    let wide = Shape { layers: 2, hidden: 512, heads: 16, kv_heads: 1, inter: 1024, rank: 16 };
    // One row and long sequences, whose heads several blocks share; whole and broken numbers of rows; no adapters, some, all.
    for (shape, lengths) in [
        (small, vec![1]),
        (small, vec![700]),
        (Shape { rank: 8, ..small }, vec![1, 2, 48, 49, 95]),
        (wide, vec![130, 3, 255, 64, 17, 48, 96, 97, 1, 300, 20]),
        (large, (0..32).map(|row| 1 + row * 23 % 300).collect()),
        (Shape { rank: 8, ..large }, (0..32).map(|row| 200 + row % 7).collect()),
    ] {
        one_case(case, &mut n, shape, &lengths);
    }
}

/// Three steps, each reading what those before it have stored. Both ways of computing round results to bfloat16 at the same
/// places, but sums are made in another order, so that their distances from 32-bit floats differ by chance.
fn one_case(case: Case, n: &mut Numbers, shape: Shape, lengths: &[u32]) {
    let Shape { hidden, kv_heads, .. } = shape;
    let (cpu, gpu): (Vec<_>, Vec<_>) = (0..shape.layers).map(|_| Weights::pair(n, case, shape)).unzip();
    let (cpu, gpu): (Vec<_>, Vec<_>) = (cpu.iter().map(Weights::layer).collect(), gpu.iter().map(Weights::layer).collect());
    let count = lengths.len();
    let capacity = 768;
    let cache = || (0..shape.layers).map(|_| KvCache::new(count, capacity, kv_heads, HEAD)).collect::<Vec<_>>();
    let mut caches = [cache(), cache(), cache()];
    let slots: Vec<u32> = (0..count as u32).rev().collect();
    let earlier = slots.iter().zip(lengths).flat_map(|(slot, length)| (0..length - 1).map(|at| (*slot, at)));
    let (mut slot_of, mut place_of): (Vec<u32>, Vec<u32>) = earlier.unzip();
    if slot_of.is_empty() {
        (slot_of, place_of) = (vec![0], vec![5]);
    }
    for layer in 0..shape.layers {
        let (k, kg) = case.pair(n.tensor(slot_of.len(), kv_heads * HEAD, 1.0));
        let (v, vg) = case.pair(n.tensor(slot_of.len(), kv_heads * HEAD, 1.0));
        caches[0][layer].store(&k, &v, &slot_of, &place_of);
        caches[1][layer].store(&kg, &vg, &slot_of, &place_of);
        caches[2][layer].store(&kg, &vg, &slot_of, &place_of);
    }
    let [for_cpu, for_apart, for_together] = &mut caches;
    let mut scratch = decode_layers::Scratch::default();
    let mut lengths = lengths.to_vec();
    for step in 0..3 {
        let (x, xg) = case.pair(n.tensor(count, hidden, 1.0));
        let [(cos, cg), (sin, sg)] = angles(n, &case, count, HEAD / 2);
        let rows = Rows { slots: &slots, lengths: &lengths, cos: &cos, sin: &sin };
        let rows_g = Rows { slots: &slots, lengths: &lengths, cos: &cg, sin: &sg };
        let exact = apart(&x, &cpu, for_cpu, &rows);
        let by_parts = apart(&xg, &gpu, for_apart, &rows_g);
        let (mut out, mut again) = (Tensor::empty(), Tensor::empty());
        for out in [&mut out, &mut again] {
            assert!(decode_layers::run(out, &xg, &gpu, for_together, &rows_g, SETTINGS, &mut scratch), "{shape:?}");
        }
        assert_eq!(out.to_vec(), again.to_vec(), "the same bits every time: {shape:?}");
        let (theirs, ours) = (distance(&exact, &by_parts), distance(&exact, &out));
        eprintln!("{shape:?}, {count} rows, step {step}: {theirs:.2e} apart, {ours:.2e} together");
        assert!(ours <= 1.3 * theirs + 1e-3, "{shape:?}, step {step}: {ours:.2e} together, {theirs:.2e} apart");
        lengths.iter_mut().for_each(|length| *length += 1);
    }
}

#[test]
fn padding_sees_nothing_and_what_does_not_fit_is_left_alone() {
    let Some((device, _turn)) = gpu("padding_sees_nothing_and_what_does_not_fit_is_left_alone") else { return };
    let case = Case { device, dtype: Dtype::Bf16 };
    let mut n = Numbers(31);
    let shape = Shape { layers: 2, hidden: 256, heads: 4, kv_heads: 2, inter: 512, rank: 0 };
    let weights: Vec<_> = (0..shape.layers).map(|_| Weights::pair(&mut n, case, shape).1).collect();
    let layers: Vec<_> = weights.iter().map(Weights::layer).collect();
    let cache = || (0..shape.layers).map(|_| KvCache::new(4, 64, shape.kv_heads, HEAD)).collect::<Vec<_>>();
    let (_, x) = case.pair(n.tensor(4, shape.hidden, 1.0));
    let [(_, cos), (_, sin)] = angles(&mut n, &case, 4, HEAD / 2);
    let mut scratch = decode_layers::Scratch::default();
    let mut run = |lengths: &[u32], caches: &mut [KvCache]| {
        let rows = Rows { slots: &[3, 1, 0, 0], lengths, cos: &cos, sin: &sin };
        let mut out = Tensor::empty();
        assert!(decode_layers::run(&mut out, &x, &layers, caches, &rows, SETTINGS, &mut scratch));
        out.to_vec()
    };
    let width = shape.hidden;
    let (two, three) = (run(&[1, 1, 0, 0], &mut cache()), run(&[1, 1, 1, 0], &mut cache()));
    assert_eq!(two[..2 * width], three[..2 * width], "what a padding row is given changes nothing for others");
    assert!(two.iter().all(|x| x.is_finite()));
    assert!(run(&[0, 0, 0, 0], &mut cache()).iter().all(|x| x.is_finite()), "nothing but padding");

    let rows = Rows { slots: &[3, 1, 0, 0], lengths: &[1, 1, 0, 0], cos: &cos, sin: &sin };
    let (mut out, narrow) = (Tensor::empty(), x.to_device(device, Dtype::F32));
    assert!(!decode_layers::run(&mut out, &narrow, &layers, &mut cache(), &rows, SETTINGS, &mut scratch));
}

#[test]
#[ignore]
fn zz_speed() {
    let Some((device, _turn)) = gpu("zz_speed") else { return };
    let (hidden, q, kv, inter, count) = (2560, 4096, 1024, 9728, 36);
    let rows: usize = std::env::var("ROWS").ok().and_then(|x| x.parse().ok()).unwrap_or(32);
    let rank: usize = std::env::var("RANK").ok().and_then(|x| x.parse().ok()).unwrap_or(0);
    let length: u32 = std::env::var("LENGTH").ok().and_then(|x| x.parse().ok()).unwrap_or(576);
    let shapes =
        [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (inter, hidden), (inter, hidden), (hidden, inter)];
    let random = |r, c, s, seed| Tensor::random_on(device, Dtype::Bf16, r, c, s, seed);
    let ones = |w: usize| Tensor::from_vec(1, w, vec![1.0; w]).to_device(device, Dtype::F32);
    let weights: Vec<Weights> = (0..count)
        .map(|layer| Weights {
            norms: [ones(hidden), ones(hidden)],
            head_norms: [ones(HEAD), ones(HEAD)],
            linears: shapes.iter().enumerate().map(|(i, (o, w))| random(*o, *w, 0.02, layer * 7 + i as u64)).collect(),
            adapters: shapes
                .iter()
                .map(|(o, w)| (rank > 0).then(|| (random(rank, *w, 0.02, 5), random(*o, rank, 0.02, 6))))
                .collect(),
        })
        .collect();
    let layers: Vec<_> = weights.iter().map(Weights::layer).collect();
    let mut caches: Vec<_> = (0..count).map(|_| KvCache::new(rows, 640, 8, HEAD)).collect();
    let x = random(rows, hidden, 1.0, 77);
    let [cos, sin] = [(); 2].map(|()| Tensor::from_vec(rows, 64, vec![0.7; rows * 64]).to_device(device, Dtype::F32));
    let slots: Vec<u32> = (0..rows as u32).collect();
    let lengths = vec![length; rows];
    let all = Rows { slots: &slots, lengths: &lengths, cos: &cos, sin: &sin };
    let (mut out, mut scratch) = (Tensor::empty(), decode_layers::Scratch::default());
    let mut times = Vec::new();
    let trace = std::env::var_os("MGSD_TRACE").is_some();
    for _ in 0..if trace { 2 } else { 12 } {
        let start = std::time::Instant::now();
        for _ in 0..if trace { 1 } else { 10 } {
            decode_layers::run(&mut out, &x, &layers, &mut caches, &all, SETTINGS, &mut scratch);
        }
        device.synchronize();
        times.push(start.elapsed().as_secs_f64() * 100.0);
    }
    times.sort_by(f64::total_cmp);
    eprintln!("rows {rows} rank {rank} length {length}: {:.3} ms a step", times[times.len() / 2]);
}
