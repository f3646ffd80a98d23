//! A named weight matrix, with a gradient if it is trained.

use mgsd_compute::{Device, Dtype, Tensor};

/// One tensor of a checkpoint.
pub struct Parameter {
    /// Its name in Hugging Face checkpoints.
    pub name: String,
    /// Shape in the checkpoint: one dimension for norms and biases, five for the patch embedding.
    pub shape: Vec<usize>,
    /// The numbers as a matrix: vectors are `[1, n]`, the patch embedding is `[out, channels * time * y * x]`.
    pub value: Tensor,
    /// Whether a GPU may store it as bfloat16: matrices of layers, and their biases. Norms and the position table are small
    /// and stay 32-bit floats everywhere.
    narrow: bool,
    /// Present exactly when the parameter is trained; backward passes add to it.
    pub grad: Option<Tensor>,
}

impl Parameter {
    /// A frozen parameter.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, value: Tensor) -> Self {
        let name = name.into();
        let narrow = shape.len() > 1 && !name.ends_with("pos_embed.weight");
        Self { name, shape, value, narrow, grad: None }
    }

    /// Whether backward passes fill a gradient.
    pub fn is_trainable(&self) -> bool {
        self.grad.is_some()
    }

    /// This one, the bias of a layer, is stored as the layer's `matrix` is on a GPU.
    pub(crate) fn follow(&mut self, matrix: &Self) {
        self.narrow = matrix.narrow;
        if !matrix.value.device().is_cpu() {
            self.move_to(matrix.value.device(), matrix.value.dtype());
        }
    }

    /// Moves the value to `device`; there what may be narrow becomes `dtype`. A gradient is lost.
    pub fn move_to(&mut self, device: Device, dtype: Dtype) {
        let dtype = if self.narrow { dtype } else { Dtype::F32 };
        self.value = self.value.to_device(device, dtype);
        self.grad = None;
    }

    /// Starts or stops training. On the CPU a mapped bfloat16 value becomes float32 memory of its own when training
    /// starts. On a GPU it stays bfloat16, and the optimiser keeps what a 32-bit master has beyond it. Gradients are
    /// 32-bit floats.
    pub fn set_trainable(&mut self, trainable: bool) {
        if !trainable {
            self.grad = None;
        } else if self.grad.is_none() {
            let device = self.value.device();
            if device.is_cpu() && self.value.dtype() != Dtype::F32 {
                let mut own = Tensor::zeros(self.value.rows(), self.value.cols());
                own.copy_from(&self.value);
                self.value = own;
            }
            self.grad = Some(Tensor::zeros_on(device, Dtype::F32, self.value.rows(), self.value.cols()));
        }
    }

    /// Sets the gradient to zero, if there is one.
    pub fn zero_grad(&mut self) {
        if let Some(grad) = &mut self.grad {
            grad.fill(0.0);
        }
    }

    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        self.value.len()
    }
}
