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
    /// Present exactly when the parameter is trained; backward passes add to it.
    pub grad: Option<Tensor>,
}

impl Parameter {
    /// A frozen parameter.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, value: Tensor) -> Self {
        Self { name: name.into(), shape, value, grad: None }
    }

    /// Whether backward passes fill a gradient.
    pub fn is_trainable(&self) -> bool {
        self.grad.is_some()
    }

    /// Whether it is a matrix of a layer, which a GPU may store as bfloat16. Vectors and the position table are small
    /// and stay 32-bit floats everywhere.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() > 1 && !self.name.ends_with("pos_embed.weight")
    }

    /// Moves the value to `device`; there a matrix becomes `dtype`. A gradient is lost.
    pub fn move_to(&mut self, device: Device, dtype: Dtype) {
        let dtype = if self.is_matrix() { dtype } else { Dtype::F32 };
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
