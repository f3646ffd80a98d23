// delta[row, head] = Σ dout out over a head's numbers, f32 [rows, heads]: the first step of the backward pass of
// attention. CAUSAL has no meaning here.

#if BF16

// Lanes that work on one sum.
#define THREADS 256
#define LANES (PIECES <= 2 ? 2 : PIECES <= 4 ? 4 : PIECES <= 8 ? 8 : 16)

// Grid (rows * heads / (256 / LANES), rounded up), block 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) attention_delta(
    float *__restrict__ delta, const number *__restrict__ dout, const number *__restrict__ out, int dout_stride,
    int out_stride, int rows, int heads
) {
    const long long item = ((long long)blockIdx.x * THREADS + threadIdx.x) / LANES;
    const int lane = threadIdx.x % LANES;
    const long long row = item / heads;
    const int head = item % heads;
    float sum = 0.0f;
    if (row < rows && lane < PIECES) {
        const uint4 x = *(const uint4 *)(dout + row * dout_stride + head * HEAD_DIM + lane * 8);
        const uint4 y = *(const uint4 *)(out + row * out_stride + head * HEAD_DIM + lane * 8);
        const u32 left[4] = {x.x, x.y, x.z, x.w}, right[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum = fmaf(first_of(left[i]), first_of(right[i]), fmaf(second_of(left[i]), second_of(right[i]), sum));
    }
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (row < rows && lane == 0) delta[item] = sum;
}

#else

#define THREADS 128

// Grid (rows * heads / 4, rounded up), block 128 threads.
extern "C" __global__ void __launch_bounds__(THREADS) attention_delta(
    float *__restrict__ delta, const float *__restrict__ dout, const float *__restrict__ out, int dout_stride,
    int out_stride, int rows, int heads
) {
    const long long item = ((long long)blockIdx.x * THREADS + threadIdx.x) / 32, row = item / heads;
    const int lane = threadIdx.x % 32, head = item % heads;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int d = lane; d < HEAD_DIM; d += 32)
        sum = fmaf(dout[row * dout_stride + head * HEAD_DIM + d], out[row * out_stride + head * HEAD_DIM + d], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) delta[item] = sum;
}

#endif
