//! Where tensors live and operations run.

use crate::cuda::Cuda;

/// The CPU or one GPU.
#[derive(Clone, Copy, Debug, Default)]
pub enum Device {
    /// Main memory; all cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda(&'static Cuda),
}

impl Device {
    /// `cpu`, `cuda` (the first GPU) or `cuda:N`. `auto` is the first GPU if it can be used, else the CPU.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Cuda::open(0).map_or(Self::Cpu, Self::Cuda));
        }
        let Some(number) = Self::number(text)? else { return Ok(Self::Cpu) };
        Cuda::open(number).map(Self::Cuda).map_err(|why| format!("device {text} cannot be used: {why}"))
    }

    /// Whether [`parse`](Self::parse) knows the name; the device need not be there.
    ///
    /// # Errors
    /// Says which names there are.
    pub fn check_name(text: &str) -> Result<(), String> {
        if text == "auto" { Ok(()) } else { Self::number(text).map(|_| ()) }
    }

    /// The number of a GPU by its name; `None`: the CPU.
    fn number(name: &str) -> Result<Option<usize>, String> {
        let number = match name {
            "cpu" => return Ok(None),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        number.map(Some).ok_or_else(|| format!("unknown device {name:?}; expected cpu, cuda, cuda:N or auto"))
    }

    /// Where tests run: on what `MGSD_TEST_DEVICE` names, without it on the CPU.
    ///
    /// # Panics
    /// If that cannot be used, or if tests would share a GPU: its work is asked for by one thread at a time.
    #[doc(hidden)]
    pub fn of_tests() -> Self {
        let name = std::env::var("MGSD_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
        let device = Self::parse(&name).unwrap_or_else(|error| panic!("MGSD_TEST_DEVICE: {error}"));
        let alone = std::env::var("RUST_TEST_THREADS").is_ok_and(|threads| threads == "1");
        assert!(alone || device.is_cpu(), "MGSD_TEST_DEVICE={name}: tests on a GPU need RUST_TEST_THREADS=1 as well");
        device
    }

    /// Whether it is the CPU.
    pub fn is_cpu(self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// Does pieces of work that do not depend on each other: one after another on the CPU, side by side on a GPU.
    pub fn together(self, pieces: &mut [&mut dyn FnMut()]) {
        match self {
            Self::Cpu => pieces.iter_mut().for_each(|piece| piece()),
            Self::Cuda(gpu) => gpu.together(pieces),
        }
    }

    /// Waits until everything asked for is done; the CPU is never behind.
    pub fn synchronize(self) {
        if let Self::Cuda(gpu) = self {
            gpu.synchronize();
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(gpu) => write!(f, "cuda:{}", gpu.ordinal()),
        }
    }
}
