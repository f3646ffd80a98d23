// Weighted sums of four table rows. rows, weights: [outputs, 4]. The table and its gradient are 32-bit floats.
extern "C" __global__ void forward(T* out, const float* table, const u32* rows, const float* weights, int width, int add) {
    i64 row = blockIdx.x;
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8) {
        Eight sum;
        if (add) {
            sum = load8(out + row * width + at);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] = 0.0f;
        }
        for (int tap = 0; tap < 4; tap++) {
            float weight = weights[row * 4 + tap];
            Eight v = load8(table + (i64)rows[row * 4 + tap] * width + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] += weight * v.x[i];
        }
        store8(out + row * width + at, sum);
    }
}

// dtable[targets[b]] += sum over places starts[b] .. starts[b + 1] of weights[place] * dout[sources[place]]
extern "C" __global__ void backward(
    float* dtable, const T* dout, const u32* targets, const u32* starts, const u32* sources, const float* weights, int width) {
    i64 target = targets[blockIdx.x];
    u32 first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8) {
        Eight sum = load8(dtable + target * width + at);
        for (u32 place = first; place < last; place++) {
            Eight v = load8(dout + (i64)sources[place] * width + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] += weights[place] * v.x[i];
        }
        store8(dtable + target * width + at, sum);
    }
}
