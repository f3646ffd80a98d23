// How a kernel begins while the one in front of it ends. Put in front of the kernels that do so before they are
// compiled. Needs compute capability 9.0; before that kernels run one after another and nothing here does anything.

// Lets the next kernel's blocks start, which wait for this one by themselves.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits for the kernel in front, in case this one was started early.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
