//! Layers of many rows with their adapters, sums over layers and the gated product, where one kernel does it all and where
//! it is not for the shapes.
//!
//! Bounds: in bfloat16 `low` is rounded, then the result (8e-3); on the way back sums over layers that are done apart
//! are rounded after each; gate and up are rounded like that before their product is (1e-2).

use super::{Case, Numbers, angles, gpu};
use mgsd_compute::ops::head_norm::{self, HeadNorm};
use mgsd_compute::ops::linear::layer::{self, Above, Between, Onto};
use mgsd_compute::ops::linear::{self, Layer, LowRank};
use mgsd_compute::ops::swiglu;
use mgsd_compute::{Dtype, Tensor, Write};

/// Rows that five tiles of 256 hardly fill, and columns of which a tile of 256, 192, 160 and 128 has the last part; so 66
/// clusters, or a few less, have one tile each. The last of the shapes are too small.
const ROWS: usize = 1270;
const COLUMNS: [usize; 5] = [3320, 2488, 2072, 1656, 520];

fn together<'a>(weight: &'a Tensor, a: &'a Tensor, b: &'a Tensor, adapted: bool) -> Layer<'a> {
    Layer { weight, bias: None, adapter: adapted.then_some(LowRank { a, b, scale: 2.0 }) }
}

#[test]
fn layers_with_adapters() {
    let Some((device, _turn)) = gpu("layers_with_adapters") else { return };
    let mut n = Numbers(40);
    for case in Case::both(device) {
        for (outputs, inputs, rank) in
            COLUMNS.into_iter().zip([328, 136, 200, 640, 72]).zip([8, 24, 64, 8, 8]).map(flat)
        {
            let what = |form: &str| format!("{form} [{ROWS}, {inputs}] to {outputs}, rank {rank}");
            let (x, xg) = case.pair(n.tensor(ROWS, inputs, 1.0));
            let (w, wg) = case.pair(n.tensor(outputs, inputs, 0.05));
            let (a, ag) = case.pair(n.tensor(rank, inputs, 0.05));
            let (b, bg) = case.pair(n.tensor(outputs, rank, 0.3));
            let (base, base_g) = case.pair(n.tensor(ROWS, outputs, 1.0));
            for adapted in [true, false] {
                let (here, there) = (together(&w, &a, &b, adapted), together(&wg, &ag, &bg, adapted));
                let (mut low, mut low_g) = (Tensor::empty(), Tensor::empty());
                let (mut y, mut yg) = (Tensor::empty(), poison(&base_g));
                layer::forward(&mut y, Onto::Nothing, &x, here, &mut low);
                layer::forward(&mut yg, Onto::Nothing, &xg, there, &mut low_g);
                case.near(&what("layer"), &y, &yg, 1e-5, 8e-3);
                if adapted {
                    case.near(&what("low"), &low, &low_g, 1e-5, 4e-3);
                }
                let (mut y, mut yg) = (Tensor::empty(), poison(&base_g));
                layer::forward(&mut y, Onto::Other(&base), &x, here, &mut low);
                layer::forward(&mut yg, Onto::Other(&base_g), &xg, there, &mut low_g);
                case.near(&what("layer onto"), &y, &yg, 1e-5, 8e-3);
                let first = yg.to_vec();
                let (mut y, mut yg) = (copy(&base), copy(&base_g));
                layer::forward(&mut y, Onto::Itself, &x, here, &mut low);
                layer::forward(&mut yg, Onto::Itself, &xg, there, &mut low_g);
                case.near(&what("layer added"), &y, &yg, 1e-5, 8e-3);
                let second = yg.to_vec();
                // Of the kernel; the library may do it another way in place.
                if case.dtype == Dtype::Bf16 && adapted && outputs > 520 {
                    assert!(first == second, "{}: other bits in place", what("layer"));
                    let mut yg = copy(&base_g);
                    layer::forward(&mut yg, Onto::Itself, &xg, there, &mut low_g);
                    assert!(second == yg.to_vec(), "{}: other bits again", what("layer"));
                }
            }
        }
    }
}

#[test]
fn queries_keys_and_values() {
    let Some((device, _turn)) = gpu("queries_keys_and_values") else { return };
    let mut n = Numbers(44);
    // As many tiles of a width as `ROWS` leave room for, the last of most layers not full; and too few. Heads of 128 numbers
    // are normed and turned by the kernel of the products, which wants tiles of 256 or 128 columns then.
    let cases = [
        (8, [2032, 504, 760], 328, 8),
        (8, [1528, 376, 568], 136, 24),
        (8, [1272, 312, 472], 200, 64),
        (8, [1016, 248, 376], 640, 8),
        (8, [264, 72, 8], 72, 8),
        (128, [1920, 384, 760], 328, 8),
        (128, [1024, 256, 376], 640, 24),
        (128, [256, 128, 8], 72, 8),
    ];
    for case in Case::both(device) {
        for (head_dim, outputs, inputs, rank) in cases {
            let (x, xg) = case.pair(n.tensor(ROWS, inputs, 1.0));
            let w = outputs.map(|outputs| case.pair(n.tensor(outputs, inputs, 0.05)));
            let a = outputs.map(|_| case.pair(n.tensor(rank, inputs, 0.05)));
            let b = outputs.map(|outputs| case.pair(n.tensor(outputs, rank, 0.3)));
            let [(qw, qwg), (kw, kwg)] = [(); 2].map(|()| case.exact(n.tensor(1, head_dim, 1.0)));
            let [(cos, cos_g), (sin, sin_g)] = angles(&mut n, &case, ROWS, head_dim / 2);
            let norm = HeadNorm { q_weight: &qw, k_weight: &kw, cos: &cos, sin: &sin, eps: 1e-6 };
            let norm_g = HeadNorm { q_weight: &qwg, k_weight: &kwg, cos: &cos_g, sin: &sin_g, eps: 1e-6 };
            for adapted in [[true; 3], [false; 3], [true, false, true]] {
                let what = |name: &str| format!("{name}, {adapted:?} [{ROWS}, {inputs}] to {outputs:?}");
                let here = [0, 1, 2].map(|i| together(&w[i].0, &a[i].0, &b[i].0, adapted[i]));
                let there = [0, 1, 2].map(|i| together(&w[i].1, &a[i].1, &b[i].1, adapted[i]));
                let empty = || [0; 3].map(|_| Tensor::empty());
                let (mut normed, mut raw, mut lows) = (empty(), [(); 2].map(|()| Tensor::empty()), empty());
                layer::heads(normed.each_mut(), raw.each_mut(), Between::Kept, &x, here, lows.each_mut(), &norm);
                let mut first: Option<[Vec<f32>; 3]> = None;
                for between in [Between::Kept, Between::Dropped, Between::Kept] {
                    let poisoned = |outputs| poison(&Tensor::zeros_on(device, case.dtype, ROWS, outputs));
                    let (mut normed_g, mut lows) = (outputs.map(poisoned), empty());
                    let mut raw_g = [outputs[0], outputs[1]].map(poisoned);
                    layer::heads(normed_g.each_mut(), raw_g.each_mut(), between, &xg, there, lows.each_mut(), &norm_g);
                    case.near(&what("v"), &normed[2], &normed_g[2], 1e-5, 8e-3);
                    if between == Between::Kept {
                        let mut apart = [(); 2].map(|()| Tensor::empty());
                        let [q, k] = apart.each_mut();
                        head_norm::forward(q, k, &raw_g[0], &raw_g[1], &norm_g);
                        for i in 0..2 {
                            case.near(&what("raw"), &raw[i], &raw_g[i], 1e-5, 8e-3);
                            assert!(apart[i].to_vec() == normed_g[i].to_vec(), "{}: other bits", what("q, k"));
                        }
                    }
                    let found = normed_g.each_ref().map(Tensor::to_vec);
                    assert!(first.get_or_insert_with(|| found.clone()) == &found, "{}: other bits again", what("all"));
                }
            }
        }
    }
}

#[test]
fn gate_and_up() {
    let Some((device, _turn)) = gpu("gate_and_up") else { return };
    let mut n = Numbers(41);
    for case in Case::both(device) {
        for (outputs, inputs, rank) in [(1656, 264, 8), (1640, 136, 40), (264, 72, 8)] {
            let what = |form: &str| format!("{form} [{ROWS}, {inputs}] to {outputs}, rank {rank}");
            let (x, xg) = case.pair(n.tensor(ROWS, inputs, 1.0));
            let mut one = |rows, cols, scale| [0; 2].map(|_| case.pair(n.tensor(rows, cols, scale)));
            let (w, a, b) = (one(outputs, inputs, 0.1), one(rank, inputs, 0.05), one(outputs, rank, 0.3));
            for adapted in [[true; 2], [false; 2], [true, false]] {
                let here = [0, 1].map(|i| together(&w[i].0, &a[i].0, &b[i].0, adapted[i]));
                let there = [0, 1].map(|i| together(&w[i].1, &a[i].1, &b[i].1, adapted[i]));
                let [mut y, mut g, mut u, mut low_g, mut low_u] = [0; 5].map(|_| Tensor::empty());
                layer::gate_up(&mut y, [&mut g, &mut u], Between::Kept, &x, here, [&mut low_g, &mut low_u]);
                let [mut low_g, mut low_u] = [0; 2].map(|_| Tensor::empty());
                let like = Tensor::zeros_on(device, case.dtype, ROWS, outputs);
                let [mut yg, mut gg, mut ug] = [0; 3].map(|_| poison(&like));
                layer::gate_up(&mut yg, [&mut gg, &mut ug], Between::Kept, &xg, there, [&mut low_g, &mut low_u]);
                case.near(&what("gate"), &g, &gg, 1e-5, 8e-3);
                case.near(&what("up"), &u, &ug, 1e-5, 8e-3);
                case.near(&what("gated"), &y, &yg, 2e-5, 1e-2);
                // What is made again for a pass back is what there was, to the bit.
                let mut again = Tensor::empty();
                swiglu::forward(&mut again, &gg, &ug);
                assert!(again.to_vec() == yg.to_vec(), "{}: made again", what("gated"));
                let (mut alone, mut halves) = (poison(&like), [0; 2].map(|_| Tensor::empty()));
                let [g, u] = &mut halves;
                layer::gate_up(&mut alone, [g, u], Between::Dropped, &xg, there, [&mut low_g, &mut low_u]);
                case.near(&what("gated alone"), &y, &alone, 2e-5, 1e-2);
                // With both adapters, or one, the same code makes it.
                if adapted[0] {
                    assert!(alone.to_vec() == yg.to_vec(), "{}: other bits without halves", what("gated"));
                }
            }
        }
    }
}

#[test]
fn gradients_of_a_shared_input() {
    let Some((device, _turn)) = gpu("gradients_of_a_shared_input") else { return };
    let mut n = Numbers(42);
    for case in Case::both(device) {
        for (inputs, outputs) in
            COLUMNS.into_iter().zip([[328, 200, 72], [640, 72, 136], [264, 136, 96], [192; 3], [136; 3]])
        {
            for (count, rank) in [(1, 8), (2, 24), (3, 8), (3, 0)] {
                let what = format!("dx [{ROWS}, {inputs}] of {:?}, rank {rank}", &outputs[..count]);
                let mut some = |rows, cols, scale| case.pair(n.tensor(rows, cols, scale));
                let parts: Vec<_> = outputs[..count]
                    .iter()
                    .map(|&outputs| {
                        let (dy, w) = (some(ROWS, outputs, 1.0), some(outputs, inputs, 0.05));
                        let (dlow, a) = (some(ROWS, rank.max(8), 0.5), some(rank.max(8), inputs, 0.1));
                        (dy, w, dlow, a)
                    })
                    .collect();
                // With the higher rank the second layer goes without.
                let adapted = |i| rank > 0 && (rank, i) != (24, 1);
                let mut here = Vec::new();
                let mut there = Vec::new();
                for (i, (dy, w, dlow, a)) in parts.iter().enumerate() {
                    let adapted = adapted(i);
                    here.push(Above { layer: together(&w.0, &a.0, &a.0, adapted), dy: &dy.0, dlow: &dlow.0 });
                    there.push(Above { layer: together(&w.1, &a.1, &a.1, adapted), dy: &dy.1, dlow: &dlow.1 });
                }
                let (base, base_g) = some(ROWS, inputs, 1.0);
                for write in [Write::Set, Write::Add] {
                    let mut dx = copy(&base);
                    let mut dxg = if write == Write::Set { poison(&base_g) } else { copy(&base_g) };
                    layer::backward_input(&mut dx, &here, write);
                    layer::backward_input(&mut dxg, &there, write);
                    // Apart, each of up to six sums is rounded.
                    case.near(&what, &dx, &dxg, 1e-5, 1e-2);
                }
            }
        }
    }
}

#[test]
fn a_plain_layer_is_a_product() {
    let Some((device, _turn)) = gpu("a_plain_layer_is_a_product") else { return };
    let mut n = Numbers(43);
    for case in Case::both(device) {
        let (_, x) = case.pair(n.tensor(70, 64, 1.0));
        let (_, w) = case.pair(n.tensor(96, 64, 0.1));
        let (_, bias) = case.exact(n.tensor(1, 96, 1.0));
        let [mut y, mut again, mut low] = [0; 3].map(|_| Tensor::empty());
        linear::forward(&mut y, &x, &w, Some(&bias), 1.0, Write::Set);
        layer::forward(&mut again, Onto::Nothing, &x, Layer { weight: &w, bias: Some(&bias), adapter: None }, &mut low);
        assert!(y.to_vec() == again.to_vec());
    }
}

fn flat(((a, b), c): ((usize, usize), usize)) -> (usize, usize, usize) {
    (a, b, c)
}

fn copy(x: &Tensor) -> Tensor {
    let mut y = Tensor::empty();
    y.copy_from(x);
    y
}

/// Of this shape and in this place, so that what is not written is found out.
fn poison(like: &Tensor) -> Tensor {
    let mut y = copy(like);
    y.fill(f32::NAN);
    y
}
