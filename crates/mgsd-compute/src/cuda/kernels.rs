//! Our kernels: sources in `kernels/`, compiled at run time for the GPU that is there, kept in a cache on disk.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use cudarc::driver::sys;
use cudarc::nvrtc::sys as nvrtc;

use super::{Cuda, Tiles, check};

/// What all sources begin with, and those of attention; the second is for whoever uses tensor cores as a warp does.
const COMMON: &str = include_str!("kernels/common.cuh");
const TENSOR_CORES: &str = include_str!("kernels/tensor_cores.cuh");
const ATTENTION: &str = include_str!("kernels/attention.cuh");
const HEAD_NORM: &str = include_str!("kernels/head_norm.cuh");
const HOPPER: &str = include_str!("kernels/attention_hopper.cuh");
/// What comes after that for kernels that begin early, for clusters of blocks, for products of few rows and for large ones.
const OVERLAP: &str = include_str!("kernels/overlap.cuh");
const CLUSTER: &str = include_str!("kernels/cluster.cuh");
const COPY_ENGINE: &str = include_str!("kernels/copy_engine.cuh");
const FEW_ROWS: &str = include_str!("kernels/few.cuh");
const LARGE_PRODUCT: &str = include_str!("kernels/product.cuh");

/// The source of each operation's kernels, by the operation's name.
const SOURCES: &[(&str, &str)] = &[
    ("adamw", include_str!("kernels/adamw.cu")),
    ("attention_backward", include_str!("kernels/attention_backward.cu")),
    ("attention_backward_hopper", include_str!("kernels/attention_backward_hopper.cu")),
    ("attention_delta", include_str!("kernels/attention_delta.cu")),
    ("attention_decode", include_str!("kernels/attention_decode.cu")),
    ("attention_forward", include_str!("kernels/attention_forward.cu")),
    ("attention_forward_hopper", include_str!("kernels/attention_forward_hopper.cu")),
    ("cluster", include_str!("kernels/cluster.cu")),
    ("elementwise", include_str!("kernels/elementwise.cu")),
    ("embedding", include_str!("kernels/embedding.cu")),
    ("few", include_str!("kernels/few.cu")),
    ("gelu", include_str!("kernels/gelu.cu")),
    ("head_norm_rope", include_str!("kernels/head_norm_rope.cu")),
    ("interpolate", include_str!("kernels/interpolate.cu")),
    ("layer_norm", include_str!("kernels/layer_norm.cu")),
    ("linear", include_str!("kernels/linear.cu")),
    ("loss", include_str!("kernels/loss.cu")),
    ("product", include_str!("kernels/product.cu")),
    ("random", include_str!("kernels/random.cu")),
    ("rms_norm", include_str!("kernels/rms_norm.cu")),
    ("rope", include_str!("kernels/rope.cu")),
    ("rows", include_str!("kernels/rows.cu")),
    ("sample", include_str!("kernels/sample.cu")),
    ("swiglu", include_str!("kernels/swiglu.cu")),
    ("thin", include_str!("kernels/thin.cu")),
];

/// What the kernel of products of few rows is compiled for.
pub(crate) const FEW: [&str; 10] =
    ["ROWS", "GROUPS", "SLICES", "HEIGHT", "SPLIT", "TILES", "STAGES", "GATED", "NORM", "LOW"];

/// What the kernel of large products is compiled for.
pub(crate) const LARGE: [&str; 9] = ["WIDE", "STAGES", "ACROSS", "GATED", "BASE", "EACH", "HEADS", "LOWS", "STEPS"];

/// What the kernel of adapters' thin products is compiled for.
pub(crate) const THIN: [&str; 5] = ["SETS", "RANK", "ALONG", "DOWN", "TURNED"];

/// The operations whose sources see sizes, and the names of those.
const SIZED: [(&str, &[&str]); 3] = [("few", &FEW), ("product", &LARGE), ("thin", &THIN)];

const MOST_SIZES: usize = FEW.len();

/// Sizes as a [`Variant`] holds them.
pub(crate) fn sizes<const COUNT: usize>(of: [usize; COUNT]) -> [u16; MOST_SIZES] {
    const { assert!(COUNT <= MOST_SIZES) };
    let fits = |&size: &usize| {
        u16::try_from(size).unwrap_or_else(|_| panic!("CUDA: {size} does not fit what kernels are compiled for"))
    };
    std::array::from_fn(|index| of.get(index).map_or(0, fits))
}

/// What a source is compiled for: the macros it sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// Activations are bfloat16, else 32-bit floats.
    pub bf16: bool,
    /// Width of a head, for attention; 0 elsewhere.
    pub head_dim: u16,
    /// Whether attention is causal.
    pub causal: bool,
    /// The macros that [`SIZED`] names for its operation, see [`sizes`]; zeros elsewhere.
    pub sizes: [u16; MOST_SIZES],
}

/// One kernel: operation, function, variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub operation: &'static str,
    pub function: &'static str,
    pub variant: Variant,
}

impl Kernel {
    /// A kernel that is the same for all types of activations.
    pub(crate) fn plain(operation: &'static str, function: &'static str) -> Self {
        Self { operation, function, variant: Variant::default() }
    }
}

/// Modules and functions loaded so far.
#[derive(Default)]
pub(super) struct Kernels {
    modules: HashMap<(&'static str, Variant), usize>,
    functions: HashMap<Kernel, Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: usize,
    /// Dynamic shared memory that was allowed.
    shared: u32,
}

/// A kernel's argument of at most eight bytes.
#[derive(Clone, Copy)]
pub(crate) struct Arg(u64);

impl From<u64> for Arg {
    /// A device pointer.
    fn from(pointer: u64) -> Self {
        Self(pointer)
    }
}

impl From<usize> for Arg {
    /// A 32-bit `int`.
    fn from(number: usize) -> Self {
        let number = i32::try_from(number).unwrap_or_else(|_| panic!("CUDA: {number} does not fit a kernel's int"));
        Self(number as u32 as u64)
    }
}

impl From<f32> for Arg {
    fn from(number: f32) -> Self {
        Self(number.to_bits() as u64)
    }
}

impl From<bool> for Arg {
    /// A 32-bit `int`.
    fn from(yes: bool) -> Self {
        Self(yes as u64)
    }
}

/// A launch in clusters of `cluster` blocks along x, and before the kernel in front has ended.
pub(super) fn early(cluster: u32) -> [sys::CUlaunchAttribute; 2] {
    // SAFETY: a zero pattern is a valid value of this plain structure of C.
    let blank: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    let mut attributes = [blank; 2];
    attributes[0].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attributes[0].value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
    attributes[1].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attributes[1].value.programmaticStreamSerializationAllowed = 1;
    attributes
}

/// Whether NVRTC can be loaded.
pub(super) fn present() -> Result<(), String> {
    // SAFETY: only looks whether the library can be loaded.
    match unsafe { nvrtc::is_culib_present() } {
        true => Ok(()),
        false => Err("NVRTC (libnvrtc) of the CUDA toolkit 12 or 13 is not there; install it (for instance \
                      `pip install nvidia-cuda-nvrtc`) and put its folder on LD_LIBRARY_PATH"
            .into()),
    }
}

impl Cuda {
    /// Starts a kernel. `args` must be what it declares, in order.
    pub(crate) fn launch(&self, kernel: Kernel, grid: [u32; 3], block: [u32; 2], shared: u32, args: &[Arg]) {
        self.start_kernel(kernel, grid, block, shared, &mut [], &[], args);
    }

    /// Starts a kernel whose first argument is a structure of all `maps`.
    pub(crate) fn launch_with_maps(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 2],
        shared: u32,
        maps: &[Tiles],
        args: &[Arg],
    ) {
        self.start_kernel(kernel, grid, block, shared, &mut [], &[maps.as_ptr().cast()], args);
    }

    /// Starts a kernel whose blocks come in clusters of `cluster` along x, and which may begin before the kernel in
    /// front of it has ended: it waits by itself (`griddepcontrol.wait`). `maps` are its first arguments. For compute
    /// capability 9.0 and later.
    #[allow(clippy::too_many_arguments)] // A launch has many sizes.
    pub(crate) fn launch_early(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 2],
        shared: u32,
        cluster: u32,
        maps: &[Tiles],
        args: &[Arg],
    ) {
        let mut attributes = early(cluster);
        let maps: Vec<_> = maps.iter().map(|map| (&raw const map.0).cast()).collect();
        self.start_kernel(kernel, grid, block, shared, &mut attributes, &maps, args);
    }

    /// `front` points to the first arguments.
    #[allow(clippy::too_many_arguments)] // As above.
    fn start_kernel(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 2],
        shared: u32,
        attributes: &mut [sys::CUlaunchAttribute],
        front: &[*const std::ffi::c_void],
        args: &[Arg],
    ) {
        if grid.contains(&0) {
            return;
        }
        self.enter();
        let function = self.function(kernel, shared, !attributes.is_empty());
        let mut words: [u64; 40] = [0; 40];
        let mut places = [std::ptr::null_mut(); 40];
        for (place, argument) in places.iter_mut().zip(front) {
            *place = argument.cast_mut();
        }
        for (index, arg) in args.iter().enumerate() {
            words[index] = arg.0;
            places[front.len() + index] = (&raw mut words[index]).cast();
        }
        let handle = function.handle as sys::CUfunction;
        let [x, y, z] = grid;
        // SAFETY: the arguments lie behind `front` and in `words`; what they point to is the caller's promise.
        let status = unsafe {
            let none = std::ptr::null_mut();
            let places = places.as_mut_ptr();
            if attributes.is_empty() {
                sys::cuLaunchKernel(handle, x, y, z, block[0], block[1], 1, shared, self.stream(), places, none)
            } else {
                let config = sys::CUlaunchConfig {
                    gridDimX: x,
                    gridDimY: y,
                    gridDimZ: z,
                    blockDimX: block[0],
                    blockDimY: block[1],
                    blockDimZ: 1,
                    sharedMemBytes: shared,
                    hStream: self.stream(),
                    attrs: attributes.as_mut_ptr(),
                    numAttrs: attributes.len() as u32,
                };
                sys::cuLaunchKernelEx(&config, handle, places, none)
            }
        };
        if status != sys::CUresult::CUDA_SUCCESS {
            panic!("CUDA: kernel {kernel:?} with grid {grid:?}, block {block:?}, shared {shared} failed: {status:?}");
        }
    }

    /// What the driver knows a kernel by.
    pub(super) fn handle(&self, kernel: Kernel, shared: u32) -> sys::CUfunction {
        self.function(kernel, shared, false).handle as sys::CUfunction
    }

    /// Major and minor compute capability.
    pub(crate) fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Starts a kernel whose threads take `each` of `count` numbers.
    pub(crate) fn flat(&self, kernel: Kernel, count: usize, each: usize, args: &[Arg]) {
        let threads = count.div_ceil(each);
        self.launch(kernel, [threads.div_ceil(256) as u32, 1, 1], [256, 1], 0, args);
    }

    /// `early`: its blocks are to find room beside those of another kernel.
    fn function(&self, kernel: Kernel, shared: u32, early: bool) -> Function {
        let mut kernels = self.kernels.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(function) = kernels.functions.get(&kernel)
            && function.shared >= shared
        {
            return *function;
        }
        let key = (kernel.operation, kernel.variant);
        let module = match kernels.modules.get(&key) {
            Some(module) => *module,
            None => {
                let module = self.load(kernel.operation, kernel.variant);
                kernels.modules.insert(key, module);
                module
            }
        };
        let mut handle = std::ptr::null_mut();
        let name = CString::new(kernel.function).unwrap_or_default();
        // SAFETY: the module was loaded and is never unloaded.
        let status = unsafe { sys::cuModuleGetFunction(&mut handle, module as sys::CUmodule, name.as_ptr()) };
        assert!(status == sys::CUresult::CUDA_SUCCESS, "CUDA: there is no kernel {kernel:?}: {status:?}");
        if shared > 48 * 1024 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(handle, attribute, shared as i32) });
        }
        if early {
            // A multiprocessor that gave some of its shared memory to the first cache would have to be empty to take it
            // back: percent that is to be shared memory.
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: a function of a loaded module.
            check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(handle, attribute, 100) });
        }
        let function = Function { handle: handle as usize, shared: shared.max(48 * 1024) };
        kernels.functions.insert(kernel, function);
        function
    }

    fn load(&self, operation: &'static str, variant: Variant) -> usize {
        let image = self.image(operation, variant);
        let mut module = std::ptr::null_mut();
        // SAFETY: `image` is a complete cubin, made for this GPU.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) });
        module as usize
    }

    /// Machine code of an operation's kernels: from the cache if it is there, else compiled and put there.
    fn image(&self, operation: &'static str, variant: Variant) -> Vec<u8> {
        let found = SOURCES.iter().find(|(name, _)| *name == operation);
        let (_, body) = found.unwrap_or_else(|| panic!("CUDA: no kernels for {operation}"));
        let attends = operation.starts_with("attention") || operation == "head_norm_rope";
        let begin: &[&str] = if attends { &[TENSOR_CORES, ATTENTION] } else { &[COMMON] };
        let more: &[&str] = match operation {
            "few" => &[OVERLAP, CLUSTER, COPY_ENGINE, FEW_ROWS],
            "product" if variant.head_dim > 0 => &[CLUSTER, COPY_ENGINE, LARGE_PRODUCT, HEAD_NORM],
            "product" => &[CLUSTER, COPY_ENGINE, LARGE_PRODUCT],
            "sample" => &[OVERLAP, CLUSTER],
            "thin" => &[TENSOR_CORES],
            "attention_decode" => &[OVERLAP, HEAD_NORM],
            "head_norm_rope" => &[HEAD_NORM],
            _ if operation.ends_with("hopper") => &[HOPPER],
            _ => &[],
        };
        let front = [begin, more].concat().join("\n");
        let source = format!("{front}\n#line 1 \"{operation}.cu\"\n{body}");
        let options = self.options(operation, variant);
        let mut version = (0, 0);
        // SAFETY: both places outlive the call.
        unsafe { nvrtc::nvrtcVersion(&mut version.0, &mut version.1) };
        let mut hasher = DefaultHasher::new();
        (&source, &options, version).hash(&mut hasher);
        let cached = cache_folder().map(|folder| folder.join(format!("{operation}-{:016x}.cubin", hasher.finish())));
        if let Some(path) = &cached
            && let Ok(image) = std::fs::read(path)
            && image.starts_with(b"\x7fELF")
        {
            return image;
        }
        let image = compile(operation, &source, &options);
        if let Some(path) = &cached {
            keep(path, &image);
        }
        image
    }

    fn options(&self, operation: &str, variant: Variant) -> Vec<String> {
        let (major, minor) = self.capability;
        // Kernels may use what only this architecture has, where it has such a set.
        let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
        let mut options = vec![
            format!("--gpu-architecture=sm_{major}{minor}{suffix}"),
            "--std=c++17".into(),
            format!("-DBF16={}", variant.bf16 as u8),
        ];
        if variant.head_dim > 0 {
            options.push(format!("-DHEAD_DIM={}", variant.head_dim));
            options.push(format!("-DCAUSAL={}", variant.causal as u8));
        }
        if let Some((_, names)) = SIZED.iter().find(|(name, _)| *name == operation) {
            options.extend(names.iter().zip(variant.sizes).map(|(name, value)| format!("-D{name}={value}")));
        }
        options
    }
}

/// `MGSD_CACHE`, or the user's cache folder; none: kernels are compiled by every process.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let own = std::env::var_os("MGSD_CACHE").map(PathBuf::from);
    let user = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    own.or(user.or(home).map(|folder| folder.join("mgsd"))).map(|folder| folder.join("kernels"))
}

/// Writes the cache entry; failing costs time later, nothing else.
fn keep(path: &std::path::Path, image: &[u8]) {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = path.parent().map(std::fs::create_dir_all).is_some_and(|made| made.is_ok())
        && std::fs::write(&temporary, image).is_ok();
    if written {
        let _ = std::fs::rename(&temporary, path);
    } else {
        let _ = std::fs::remove_file(&temporary);
    }
}

fn compile(operation: &str, source: &str, options: &[String]) -> Vec<u8> {
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let (source, name) = (text(source), text(&format!("{operation}.cu")));
    let options: Vec<CString> = options.iter().map(|option| text(option)).collect();
    let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    let none = std::ptr::null();
    // SAFETY: all strings end in a zero and outlive the program; sizes are asked for before they are used.
    unsafe {
        let made = nvrtc::nvrtcCreateProgram(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none);
        assert!(made == nvrtc::nvrtcResult::NVRTC_SUCCESS, "NVRTC does not start: {made:?}");
        let status = nvrtc::nvrtcCompileProgram(program, pointers.len() as i32, pointers.as_ptr());
        if status != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            let mut size = 0;
            nvrtc::nvrtcGetProgramLogSize(program, &mut size);
            let mut log = vec![0u8; size.max(1)];
            nvrtc::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
            panic!("NVRTC cannot compile the kernels of {operation} ({status:?}):\n{log}");
        }
        let mut size = 0;
        nvrtc::nvrtcGetCUBINSize(program, &mut size);
        let mut image = vec![0u8; size];
        nvrtc::nvrtcGetCUBIN(program, image.as_mut_ptr().cast());
        nvrtc::nvrtcDestroyProgram(&mut program);
        image
    }
}
