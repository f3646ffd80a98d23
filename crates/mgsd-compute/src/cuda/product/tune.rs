//! The fastest of the ways that cuBLASLt offers for a large product, found by trying and kept on disk, so that the same
//! GPU makes the same choice, and gives the same bits, the next time.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys;

use super::{Buffer, Cuda, Plan, Planner, Product, WORKSPACE};
use crate::cuda::kernels::cache_folder;

/// Something to try a product with.
pub(super) struct Tuner {
    pub(super) gpu: &'static Cuda,
    pub(super) alpha: f32,
    pub(super) a: u64,
    pub(super) b: u64,
}

/// Choices made so far, by the product's size class.
#[derive(Default)]
pub(super) struct Tuned {
    chosen: HashMap<u64, lt::cublasLtMatmulAlgo_t>,
    file: Option<PathBuf>,
    read: bool,
}

/// Numbers of tokens change from batch to batch; products whose sizes differ less than this share a choice.
const CLASS: usize = 512;
/// Runs of each way after the first.
const RUNS: usize = 3;
/// Another way must be this much faster than the library's own choice.
const GAIN: f32 = 0.98;

/// Whether a product takes long enough, and its result is small enough to be computed aside.
pub(super) fn is_worth_it(product: Product) -> bool {
    let Product { m, n, k, out, .. } = product;
    m * n * k >= 1 << 30 && m * n * out.dtype.size() <= 1 << 30
}

fn class(product: Product) -> u64 {
    let round = |size: usize| if size > CLASS { size.next_multiple_of(CLASS) } else { size.next_power_of_two() };
    let alike = Product { n: round(product.n), k: round(product.k), ..product };
    let mut hasher = DefaultHasher::new();
    alike.hash(&mut hasher);
    hasher.finish()
}

impl Tuned {
    fn open(&mut self, gpu: &Cuda) {
        if std::mem::replace(&mut self.read, true) {
            return;
        }
        // SAFETY: takes nothing, gives a number.
        let version = unsafe { lt::cublasLtGetVersion() };
        let name: String = gpu.name().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.file = cache_folder().map(|folder| folder.join(format!("products-{name}-{version}.txt")));
        let text = self.file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        for line in text.lines() {
            let words: Vec<u64> = line.split(' ').filter_map(|word| u64::from_str_radix(word, 16).ok()).collect();
            // A torn line is no choice.
            if let Some((class, data)) = words.split_first()
                && let Ok(data) = <[u64; 8]>::try_from(data)
            {
                self.chosen.insert(*class, lt::cublasLtMatmulAlgo_t { data });
            }
        }
    }

    fn keep(&mut self, class: u64, algorithm: lt::cublasLtMatmulAlgo_t) {
        use std::io::Write as _;
        self.chosen.insert(class, algorithm);
        let Some(file) = &self.file else { return };
        let words: Vec<String> = std::iter::once(class).chain(algorithm.data).map(|w| format!("{w:x}")).collect();
        // Without the file the next process tries again, nothing worse.
        let made = file.parent().map(std::fs::create_dir_all);
        if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(file)
            && made.is_some_and(|made| made.is_ok())
        {
            let _ = file.write_all(format!("{}\n", words.join(" ")).as_bytes());
        }
    }
}

impl Planner {
    /// The way chosen for products of this class, which is tried out now if it is the first.
    pub(super) fn tuned(
        &mut self,
        product: Product,
        plan: Plan,
        candidates: &[lt::cublasLtMatmulAlgo_t],
        tuner: &Tuner,
    ) -> lt::cublasLtMatmulAlgo_t {
        self.tuned.open(tuner.gpu);
        let class = class(product);
        if let Some(chosen) = self.tuned.chosen.get(&class) {
            return if self.fits(&plan, chosen) { *chosen } else { candidates[0] };
        }
        let chosen = self.fastest(product, plan, candidates, tuner);
        self.tuned.keep(class, chosen);
        chosen
    }

    /// Whether a way that was found for another size does for this one.
    fn fits(&self, plan: &Plan, way: &lt::cublasLtMatmulAlgo_t) -> bool {
        // SAFETY: a zero pattern is a valid value of this plain structure of C, and a place for the result.
        let (status, result) = unsafe {
            let mut result: lt::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let (a, b, out) = (plan.a, plan.b, plan.out);
            (lt::cublasLtMatmulAlgoCheck(self.handle, plan.description, a, b, out, out, way, &mut result), result)
        };
        status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE
    }

    fn fastest(
        &self,
        product: Product,
        mut plan: Plan,
        candidates: &[lt::cublasLtMatmulAlgo_t],
        tuner: &Tuner,
    ) -> lt::cublasLtMatmulAlgo_t {
        let gpu = tuner.gpu;
        let (mut out, mut workspace) = (Buffer::empty(gpu), Buffer::empty(gpu));
        let bytes = product.m * product.n * product.out.dtype.size();
        out.reserve(bytes);
        out.zero(bytes);
        workspace.reserve(WORKSPACE);
        let beta = if product.adds { 1.0 } else { 0.0 };
        let pointers = [tuner.a, tuner.b, out.pointer(), out.pointer()];
        let mut best = (candidates[0], f32::INFINITY);
        for (index, way) in candidates.iter().enumerate() {
            plan.algorithm = *way;
            let run = || {
                // SAFETY: the layouts describe the tuner's operands, and `out` is as large as the result.
                let status = unsafe {
                    self.start_product(&plan, tuner.alpha, beta, pointers, workspace.pointer(), gpu.stream())
                };
                status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS
            };
            if !run() {
                continue;
            }
            let milliseconds = gpu.timed(|| {
                (0..RUNS).for_each(|_| {
                    run();
                });
            });
            let wanted = if index == 0 { f32::INFINITY } else { best.1 * GAIN };
            if milliseconds < wanted {
                best = (*way, milliseconds);
            }
        }
        best.0
    }
}

impl Cuda {
    /// Milliseconds that work takes on the device.
    fn timed(&self, work: impl FnOnce()) -> f32 {
        let mut events = [std::ptr::null_mut(); 2];
        let mut milliseconds = f32::INFINITY;
        let call = super::super::check;
        // SAFETY: plain calls of the driver's interface with places for their results.
        unsafe {
            for event in &mut events {
                call("cuEventCreate", sys::cuEventCreate(event, 0));
            }
            call("cuEventRecord", sys::cuEventRecord(events[0], self.stream()));
            work();
            call("cuEventRecord", sys::cuEventRecord(events[1], self.stream()));
            call("cuEventSynchronize", sys::cuEventSynchronize(events[1]));
            call("cuEventElapsedTime", sys::cuEventElapsedTime_v2(&mut milliseconds, events[0], events[1]));
            for event in events {
                call("cuEventDestroy", sys::cuEventDestroy_v2(event));
            }
        }
        milliseconds
    }
}
