//! Matrix products by cuBLASLt, column-major as it wants them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use cudarc::cublaslt::sys as lt;

use super::{Buffer, Cuda};
use crate::Dtype;

pub(crate) mod own;
mod tune;
use tune::{Tuned, Tuner};

/// Memory that a product may use on the side.
const WORKSPACE: usize = 64 << 20;

/// Ways of computing a product that are compared.
const CANDIDATES: usize = 8;

/// Products planned at most; a run whose shapes change all the time starts again.
const PLANS: usize = 8192;

/// The library and the plans made so far.
pub(super) struct Planner {
    handle: lt::cublasLtHandle_t,
    plans: HashMap<Product, Plan>,
    tuned: Tuned,
    /// One for each stream, since they may run side by side.
    workspaces: Vec<Buffer>,
}

/// One side of a product, column-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operand {
    pub dtype: Dtype,
    /// Numbers from one column to the next.
    pub stride: usize,
    /// Used transposed.
    pub transposed: bool,
}

/// `D [m, n] = alpha op(A) [m, k] op(B) [k, n] + beta C + bias [m]`, all but the numbers and pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Operand,
    pub b: Operand,
    /// Of `C` and `D`.
    pub out: Operand,
    /// Whether `C` is read.
    pub adds: bool,
    /// Whether a vector is added to every column; it is of the type of `D`.
    pub bias: bool,
}

#[derive(Clone, Copy)]
struct Plan {
    description: lt::cublasLtMatmulDesc_t,
    a: lt::cublasLtMatrixLayout_t,
    b: lt::cublasLtMatrixLayout_t,
    out: lt::cublasLtMatrixLayout_t,
    algorithm: lt::cublasLtMatmulAlgo_t,
}

/// Whether cuBLASLt can be loaded.
pub(super) fn present() -> Result<(), String> {
    // SAFETY: only looks whether the library can be loaded.
    match unsafe { lt::is_culib_present() } {
        true => Ok(()),
        false => Err("cuBLASLt (libcublasLt) of the CUDA toolkit 12 or 13 is not there; install it (for instance \
                      `pip install nvidia-cublas`) and put its folder on LD_LIBRARY_PATH"
            .into()),
    }
}

fn data_type(dtype: Dtype) -> lt::cudaDataType {
    match dtype {
        Dtype::F32 => lt::cudaDataType::CUDA_R_32F,
        Dtype::Bf16 => lt::cudaDataType::CUDA_R_16BF,
    }
}

#[track_caller]
fn check(call: &str, status: lt::cublasStatus_t) {
    if status != lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        panic!("cuBLASLt: {call} failed: {status:?}");
    }
}

fn set<T>(description: lt::cublasLtMatmulDesc_t, attribute: lt::cublasLtMatmulDescAttributes_t, value: T) {
    // SAFETY: `value` has the size that is passed.
    let status = unsafe {
        lt::cublasLtMatmulDescSetAttribute(description, attribute, (&raw const value).cast(), size_of::<T>())
    };
    check("cublasLtMatmulDescSetAttribute", status);
}

fn layout(operand: Operand, rows: usize, cols: usize) -> lt::cublasLtMatrixLayout_t {
    let (rows, cols) = if operand.transposed { (cols, rows) } else { (rows, cols) };
    let mut made = std::ptr::null_mut();
    let (kind, stride) = (data_type(operand.dtype), operand.stride as i64);
    // SAFETY: `made` is a place for the result.
    let status = unsafe { lt::cublasLtMatrixLayoutCreate(&mut made, kind, rows as u64, cols as u64, stride) };
    check("cublasLtMatrixLayoutCreate", status);
    made
}

impl Planner {
    pub(super) fn start() -> Result<Self, String> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is a place for the result.
        match unsafe { lt::cublasLtCreate(&mut handle) } {
            lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => {
                Ok(Self { handle, plans: HashMap::new(), tuned: Tuned::default(), workspaces: Vec::new() })
            }
            failed => Err(format!("cublasLtCreate failed: {failed:?}")),
        }
    }

    /// How a product is computed; `bias` and `tuner`: something to try it with.
    fn plan(&mut self, product: Product, bias: u64, tuner: Option<&Tuner>) -> Plan {
        if let Some(plan) = self.plans.get(&product) {
            return *plan;
        }
        if self.plans.len() >= PLANS {
            self.plans.drain().for_each(|(_, plan)| plan.destroy());
        }
        let Product { m, n, k, a, b, out, .. } = product;
        let mut description = std::ptr::null_mut();
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: `description` is a place for the result.
        let status = unsafe { lt::cublasLtMatmulDescCreate(&mut description, compute, lt::cudaDataType::CUDA_R_32F) };
        check("cublasLtMatmulDescCreate", status);
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, a.transposed as i32);
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, b.transposed as i32);
        if product.bias {
            set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS);
            set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        }
        let (a, b, out) = (layout(a, m, k), layout(b, k, n), layout(out, m, n));
        let candidates = self.candidates(product, description, [a, b, out]);
        let mut plan = Plan { description, a, b, out, algorithm: candidates[0] };
        if let Some(tuner) = tuner.filter(|_| tune::is_worth_it(product)) {
            plan.algorithm = self.tuned(product, plan, &candidates, tuner);
        }
        self.plans.insert(product, plan);
        plan
    }

    /// # Safety
    /// `[a, b, c, d]` point to memory that the plan's layouts describe, `workspace` to [`WORKSPACE`] bytes.
    unsafe fn start_product(
        &self,
        plan: &Plan,
        alpha: f32,
        beta: f32,
        [a, b, c, d]: [u64; 4],
        workspace: u64,
        stream: cudarc::driver::sys::CUstream,
    ) -> lt::cublasStatus_t {
        // SAFETY: the caller's promise.
        unsafe {
            lt::cublasLtMatmul(
                self.handle,
                plan.description,
                (&raw const alpha).cast(),
                a as *const _,
                plan.a,
                b as *const _,
                plan.b,
                (&raw const beta).cast(),
                c as *const _,
                plan.out,
                d as *mut _,
                plan.out,
                &plan.algorithm,
                workspace as *mut _,
                WORKSPACE,
                stream as lt::cudaStream_t,
            )
        }
    }

    /// Ways to compute a product, the one that the library thinks fastest first.
    fn candidates(
        &self,
        product: Product,
        description: lt::cublasLtMatmulDesc_t,
        [a, b, out]: [lt::cublasLtMatrixLayout_t; 3],
    ) -> Vec<lt::cublasLtMatmulAlgo_t> {
        use lt::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let mut preference = std::ptr::null_mut();
        // SAFETY: a zero pattern is a valid value of these plain structures of C.
        let mut found: [lt::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: places for all results; values have the sizes that are passed.
        unsafe {
            check("cublasLtMatmulPreferenceCreate", lt::cublasLtMatmulPreferenceCreate(&mut preference));
            let workspace = WORKSPACE;
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let value = (&raw const workspace).cast();
            let status = lt::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size_of::<usize>());
            check("cublasLtMatmulPreferenceSetAttribute", status);
            for (attribute, operand) in [
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, product.a),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, product.b),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, product.out),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, product.out),
            ] {
                // Rows of any matrix begin at such an address.
                let least: u32 = 1 << (operand.stride * operand.dtype.size()).trailing_zeros().min(4);
                let value = (&raw const least).cast();
                let status = lt::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size_of::<u32>());
                check("cublasLtMatmulPreferenceSetAttribute", status);
            }
            let status = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                a,
                b,
                out,
                out,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            );
            lt::cublasLtMatmulPreferenceDestroy(preference);
            let good = status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS && count > 0;
            assert!(good, "cuBLASLt knows no way to compute {product:?}: {status:?}");
        }
        let good = found[..count as usize].iter().filter(|way| way.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        good.map(|way| way.algo).collect()
    }
}

impl Plan {
    fn destroy(self) {
        // SAFETY: made by the matching calls, and not used afterwards.
        unsafe {
            lt::cublasLtMatmulDescDestroy(self.description);
            for layout in [self.a, self.b, self.out] {
                lt::cublasLtMatrixLayoutDestroy(layout);
            }
        }
    }
}

impl Cuda {
    /// `D = alpha op(A) op(B) + C + bias` (`C` and `bias` only if the product has them), by pointers to the first numbers.
    pub(crate) fn product(&'static self, product: Product, alpha: f32, [a, b, c, d]: [u64; 4], bias: u64) {
        if product.m == 0 || product.n == 0 {
            return;
        }
        self.enter();
        let mut planner = self.product.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let side = self.branch.load(Ordering::Relaxed) > 0;
        let tuner = Tuner { gpu: self, alpha, a, b };
        let plan = planner.plan(product, bias, (!side && !self.is_recording()).then_some(&tuner));
        if planner.workspaces.is_empty() {
            planner.workspaces = self.streams.iter().map(|_| Buffer::empty(self)).collect();
        }
        let workspace = &mut planner.workspaces[self.branch.load(Ordering::Relaxed)];
        workspace.reserve(WORKSPACE);
        let workspace = workspace.pointer();
        if product.bias {
            set(plan.description, lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        }
        let beta: f32 = if product.adds { 1.0 } else { 0.0 };
        // SAFETY: the layouts describe the memory behind the pointers; that is the caller's promise.
        let status = unsafe { planner.start_product(&plan, alpha, beta, [a, b, c, d], workspace, self.stream()) };
        if status != lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            panic!("cuBLASLt: {product:?} failed: {status:?}");
        }
    }
}
