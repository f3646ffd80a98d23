// RMSNorm of every head of q and k, then the rotary embedding, in one pass; formulas in head_norm.cuh. CAUSAL has no
// meaning here.

#define THREADS 128

// `q_out`, `k_out` may be `q`, `k`. Grid (rows, any): the heads of a row are divided among the blocks of the second
// direction. Block 128 threads.
extern "C" __global__ void __launch_bounds__(THREADS) head_norm_rope_forward(
    number *q_out, number *k_out, const number *q, const number *k, const float *__restrict__ q_weight,
    const float *__restrict__ k_weight, const float *__restrict__ cos, const float *__restrict__ sin, int q_out_stride,
    int k_out_stride, int q_stride, int k_stride, int heads, int kv_heads, float eps
) {
    const int lane = threadIdx.x % LANES, at = lane * 4, row = blockIdx.x;
    const bool used = lane < USED;
    const Fours angles = angles_of(cos, sin, row, at, used);
    for (int base = blockIdx.y * AT_ONCE; base < heads + kv_heads; base += gridDim.y * AT_ONCE) {
        const int head = base + threadIdx.x / LANES, kv_head = head - heads;
        const bool active = used && head < heads + kv_heads, is_q = head < heads;
        const number *from = is_q ? q + (long long)row * q_stride + head * HEAD_DIM
                                  : k + (long long)row * k_stride + kv_head * HEAD_DIM;
        number *to = is_q ? q_out + (long long)row * q_out_stride + head * HEAD_DIM
                          : k_out + (long long)row * k_out_stride + kv_head * HEAD_DIM;
        const Fours weight = load_fours(is_q ? q_weight : k_weight, at, active);
        const Fours y = norm_rotate(load_fours(from, at, active), weight, angles, eps);
        if (active) store_fours(to, at, y);
    }
}

// From the gradients of the results to those of `q`, `k` (as they were before the norm) and of the weights: dx = r w dy
// - x r³ mean(w dy x), dw = Σ dy r x, with dy the gradient turned back. `dq`, `dk` may be `dq_out`, `dk_out`.
// `partial`: f32 [blocks, 2, HEAD_DIM], what each block adds to the gradients of the q and the k weight; null when
// those are not wanted. Grid (blocks), any number, block 128 threads; the bits of `partial`'s sum depend on that number
// alone.
extern "C" __global__ void __launch_bounds__(THREADS) head_norm_rope_backward(
    number *dq, number *dk, float *__restrict__ partial, const number *dq_out, const number *dk_out,
    const number *__restrict__ q, const number *__restrict__ k, const float *__restrict__ q_weight,
    const float *__restrict__ k_weight, const float *__restrict__ cos, const float *__restrict__ sin, int dq_stride,
    int dk_stride, int dq_out_stride, int dk_out_stride, int q_stride, int k_stride, int rows, int heads, int kv_heads,
    float eps
) {
    __shared__ float shared[AT_ONCE][2][HEAD_DIM];
    const int lane = threadIdx.x % LANES, at = lane * 4, place = threadIdx.x / LANES;
    const bool used = lane < USED;
    const Fours weights[2] = {load_fours(q_weight, at, used), load_fours(k_weight, at, used)};
    Fours sums[2];
#pragma unroll
    for (int i = 0; i < 4; i++) sums[0].a[i] = sums[0].b[i] = sums[1].a[i] = sums[1].b[i] = 0.0f;

    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const Fours angles = angles_of(cos, sin, row, at, used);
#pragma unroll
        for (int which = 0; which < 2; which++) {
            const int count = which == 0 ? heads : kv_heads;
            const number *from = which == 0 ? q + (long long)row * q_stride : k + (long long)row * k_stride;
            const number *given =
                which == 0 ? dq_out + (long long)row * dq_out_stride : dk_out + (long long)row * dk_out_stride;
            number *to = which == 0 ? dq + (long long)row * dq_stride : dk + (long long)row * dk_stride;
#pragma unroll 4
            for (int base = 0; base < count; base += AT_ONCE) {
                const int head = base + place;
                const bool active = used && head < count;
                const Fours x = load_fours(from + head * HEAD_DIM, at, active);
                Fours dy = load_fours(given + head * HEAD_DIM, at, active), dx;
                rotate(dy, angles, -1.0f);
                const float r = inverse_rms(x, eps);
                float product = 0.0f;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sums[which].a[i] = fmaf(dy.a[i] * r, x.a[i], sums[which].a[i]);
                    sums[which].b[i] = fmaf(dy.b[i] * r, x.b[i], sums[which].b[i]);
                    dy.a[i] *= weights[which].a[i];
                    dy.b[i] *= weights[which].b[i];
                    product = fmaf(dy.a[i], x.a[i], fmaf(dy.b[i], x.b[i], product));
                }
                const float back = r * r * r * sum_of_lanes(product) / HEAD_DIM;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    dx.a[i] = fmaf(dy.a[i], r, -back * x.a[i]);
                    dx.b[i] = fmaf(dy.b[i], r, -back * x.b[i]);
                }
                if (active) store_fours(to + head * HEAD_DIM, at, dx);
            }
        }
    }
    if (!partial) return;
    if (used) {
#pragma unroll
        for (int which = 0; which < 2; which++) {
            store_four(&shared[place][which][at], sums[which].a);
            store_four(&shared[place][which][at + HALF], sums[which].b);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * HEAD_DIM; i += THREADS) {
        float sum = 0.0f;
        for (int p = 0; p < AT_ONCE; p++) sum += shared[p][i / HEAD_DIM][i % HEAD_DIM];
        partial[(long long)blockIdx.x * 2 * HEAD_DIM + i] = sum;
    }
}

// Adds up what the blocks left: dq_weight += ..., dk_weight += ..., in the same order every time. Grid (HEAD_DIM / 4),
// block (8, 128) (a power of two): 8 columns of the 2 * HEAD_DIM a block.
extern "C" __global__ void __launch_bounds__(1024) head_norm_weights(
    float *__restrict__ dq_weight, float *__restrict__ dk_weight, const float *__restrict__ partial, int blocks
) {
    __shared__ float shared[128][8];
    const int column = blockIdx.x * 8 + threadIdx.x;
    float sum = 0.0f;
#pragma unroll 4
    for (int block = threadIdx.y; block < blocks; block += blockDim.y) sum += partial[(long long)block * 2 * HEAD_DIM + column];
    shared[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half) shared[threadIdx.y][threadIdx.x] += shared[threadIdx.y + half][threadIdx.x];
        __syncthreads();
    }
    if (threadIdx.y != 0) return;
    sum = shared[0][threadIdx.x];
    float *to = column < HEAD_DIM ? dq_weight + column : dk_weight + column - HEAD_DIM;
    *to += sum;
}
