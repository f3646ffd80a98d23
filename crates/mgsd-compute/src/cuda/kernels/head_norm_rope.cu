// RMSNorm of every head of q and k, then the rotary embedding (rotate-half), in one pass: with x a head, w the weight,
// r = 1 / √(mean(x²) + eps), y = r w x and a, b the first and second half of y, the result is (a cos - b sin, b cos + a
// sin). `cos`, `sin`: f32 [rows, HEAD_DIM / 2]; weights f32 [HEAD_DIM]. CAUSAL has no meaning here.
//
// A few lanes work on one head, each on four neighbours of its first half and the same four of the second.

#define THREADS 128
#define HALF (HEAD_DIM / 2)
#define USED (HALF / 4)
#define LANES (USED <= 1 ? 1 : USED <= 2 ? 2 : USED <= 4 ? 4 : USED <= 8 ? 8 : 16)
// Heads that a block works on at a time.
#define AT_ONCE (THREADS / LANES)

// Numbers `at..at + 4` and `at + HALF..at + HALF + 4` of a head.
struct Eight {
    float a[4], b[4];
};

__device__ __forceinline__ void load_four(float (&x)[4], const float *from) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = from[i];
}
__device__ __forceinline__ void store_four(float *to, const float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = x[i];
}
#if BF16
__device__ __forceinline__ void load_four(float (&x)[4], const number *from) {
    const uint2 both = *(const uint2 *)from;
    x[0] = first_of(both.x), x[1] = second_of(both.x), x[2] = first_of(both.y), x[3] = second_of(both.y);
}
__device__ __forceinline__ void store_four(number *to, const float (&x)[4]) {
    *(uint2 *)to = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
}
#endif

template <typename N> __device__ __forceinline__ Eight load_eight(const N *head, int at, bool active) {
    Eight x;
#pragma unroll
    for (int i = 0; i < 4; i++) x.a[i] = x.b[i] = 0.0f;
    if (active) {
        load_four(x.a, head + at);
        load_four(x.b, head + at + HALF);
    }
    return x;
}

__device__ __forceinline__ void store_eight(number *head, int at, const Eight &x) {
    store_four(head + at, x.a);
    store_four(head + at + HALF, x.b);
}

__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

// `angles` holds cos and sin. `sign` -1 turns back.
__device__ __forceinline__ void rotate(Eight &x, const Eight &angles, float sign) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float a = x.a[i], b = x.b[i], c = angles.a[i], s = sign * angles.b[i];
        x.a[i] = a * c - b * s;
        x.b[i] = b * c + a * s;
    }
}

__device__ __forceinline__ float inverse_rms(const Eight &x, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) sum = fmaf(x.a[i], x.a[i], fmaf(x.b[i], x.b[i], sum));
    return 1.0f / sqrtf(sum_of_lanes(sum) / HEAD_DIM + eps);
}

__device__ __forceinline__ Eight norm_rotate(const Eight &x, const Eight &weight, const Eight &angles, float eps) {
    const float r = inverse_rms(x, eps);
    Eight y;
#pragma unroll
    for (int i = 0; i < 4; i++) y.a[i] = x.a[i] * r * weight.a[i], y.b[i] = x.b[i] * r * weight.b[i];
    rotate(y, angles, 1.0f);
    return y;
}

__device__ __forceinline__ Eight angles_of(const float *cos, const float *sin, int row, int at, bool active) {
    Eight angles;
#pragma unroll
    for (int i = 0; i < 4; i++) angles.a[i] = angles.b[i] = 0.0f;
    if (active) {
        load_four(angles.a, cos + (long long)row * HALF + at);
        load_four(angles.b, sin + (long long)row * HALF + at);
    }
    return angles;
}

// `q_out`, `k_out` may be `q`, `k`. Grid (rows, any): the heads of a row are divided among the blocks of the second
// direction. Block 128 threads.
extern "C" __global__ void __launch_bounds__(THREADS) head_norm_rope_forward(
    number *q_out, number *k_out, const number *q, const number *k, const float *__restrict__ q_weight,
    const float *__restrict__ k_weight, const float *__restrict__ cos, const float *__restrict__ sin, int q_out_stride,
    int k_out_stride, int q_stride, int k_stride, int heads, int kv_heads, float eps
) {
    const int lane = threadIdx.x % LANES, at = lane * 4, row = blockIdx.x;
    const bool used = lane < USED;
    const Eight angles = angles_of(cos, sin, row, at, used);
    for (int base = blockIdx.y * AT_ONCE; base < heads + kv_heads; base += gridDim.y * AT_ONCE) {
        const int head = base + threadIdx.x / LANES, kv_head = head - heads;
        const bool active = used && head < heads + kv_heads, is_q = head < heads;
        const number *from = is_q ? q + (long long)row * q_stride + head * HEAD_DIM
                                  : k + (long long)row * k_stride + kv_head * HEAD_DIM;
        number *to = is_q ? q_out + (long long)row * q_out_stride + head * HEAD_DIM
                          : k_out + (long long)row * k_out_stride + kv_head * HEAD_DIM;
        const Eight weight = load_eight(is_q ? q_weight : k_weight, at, active);
        const Eight y = norm_rotate(load_eight(from, at, active), weight, angles, eps);
        if (active) store_eight(to, at, y);
    }
}

// The same for generation: q goes to `q_out`, k and v go to slots[row] at positions[row] of the cache
// ([slots, kv_heads, capacity, HEAD_DIM] each); where the position is not below `capacity` they go nowhere.
// Grid (rows, any), block 128 threads.
extern "C" __global__ void __launch_bounds__(THREADS) head_norm_rope_store(
    number *q_out, number *__restrict__ keys, number *__restrict__ values, const number *q,
    const number *__restrict__ k, const number *__restrict__ v, const float *__restrict__ q_weight,
    const float *__restrict__ k_weight, const float *__restrict__ cos, const float *__restrict__ sin,
    const u32 *__restrict__ slots, const u32 *__restrict__ positions, int q_out_stride, int q_stride, int k_stride,
    int v_stride, int capacity, int heads, int kv_heads, float eps
) {
    const int lane = threadIdx.x % LANES, at = lane * 4, row = blockIdx.x;
    const bool used = lane < USED;
#if __CUDA_ARCH__ >= 900
    // In case this kernel was started before the one in front ended. The next one's blocks, which wait by themselves, may
    // start only now: multiprocessors are free then, so that they spread evenly.
    asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
    const long long slot = slots[row], position = positions[row];
    const Eight angles = angles_of(cos, sin, row, at, used);
    for (int base = blockIdx.y * AT_ONCE; base < heads + 2 * kv_heads; base += gridDim.y * AT_ONCE) {
        const int head = base + threadIdx.x / LANES;
        const bool active = used && head < heads + 2 * kv_heads;
        const bool is_q = head < heads, is_k = !is_q && head < heads + kv_heads;
        const int kv_head = head - heads - (is_k ? 0 : kv_heads);
        const number *from = is_q ? q + (long long)row * q_stride + head * HEAD_DIM
                             : is_k ? k + (long long)row * k_stride + kv_head * HEAD_DIM
                                    : v + (long long)row * v_stride + kv_head * HEAD_DIM;
        const long long place = ((slot * kv_heads + kv_head) * capacity + position) * HEAD_DIM;
        number *to = is_q ? q_out + (long long)row * q_out_stride + head * HEAD_DIM : (is_k ? keys : values) + place;
        const Eight x = load_eight(from, at, active);
        const Eight weight = load_eight(is_q ? q_weight : k_weight, at, active && (is_q || is_k));
        const Eight y = norm_rotate(x, weight, angles, eps);
        if (active && (is_q || position < capacity)) store_eight(to, at, is_q || is_k ? y : x);
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
    const Eight weights[2] = {load_eight(q_weight, at, used), load_eight(k_weight, at, used)};
    Eight sums[2];
#pragma unroll
    for (int i = 0; i < 4; i++) sums[0].a[i] = sums[0].b[i] = sums[1].a[i] = sums[1].b[i] = 0.0f;

    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const Eight angles = angles_of(cos, sin, row, at, used);
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
                const Eight x = load_eight(from + head * HEAD_DIM, at, active);
                Eight dy = load_eight(given + head * HEAD_DIM, at, active), dx;
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
                if (active) store_eight(to + head * HEAD_DIM, at, dx);
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
