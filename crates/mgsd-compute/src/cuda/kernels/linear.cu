// What surrounds the matrix product of a linear layer.

// out[row, :] += bias
extern "C" __global__ void add_bias(T* out, const float* bias, int rows, int width) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= (i64)rows * width) return;
    Eight v = load8(out + at), b = load8(bias + at % width);
#pragma unroll
    for (int i = 0; i < 8; i++) v.x[i] += b.x[i];
    store8(out + at, v);
}

// Sums of columns over the rows of one slice: partials[slice, :]. A block serves 8 * 32 columns with (32, 8) threads.
extern "C" __global__ void column_sums(float* partials, const T* x, int rows, int width, int slices) {
    __shared__ float parts[8][256];
    int col = (blockIdx.x * 32 + threadIdx.x) * 8, slice = blockIdx.y;
    int each = (rows + slices - 1) / slices;
    int first = slice * each, last = min(first + each, rows);
    Eight sum;
#pragma unroll
    for (int i = 0; i < 8; i++) sum.x[i] = 0.0f;
    if (col < width) {
        for (int row = first + threadIdx.y; row < last; row += 8) {
            Eight v = load8(x + (i64)row * width + col);
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] += v.x[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) parts[threadIdx.y][threadIdx.x * 8 + i] = sum.x[i];
    __syncthreads();
    int mine = threadIdx.y * 32 + threadIdx.x, place = blockIdx.x * 256 + mine;
    if (place < width) {
        float total = 0.0f;
        for (int part = 0; part < 8; part++) total += parts[part][mine];
        partials[(i64)slice * width + place] = total;
    }
}

// to[i] += sum over rows of partials[row, i], in an order that depends on the number of rows alone. A block serves 32
// columns with (32, 32) threads.
extern "C" __global__ void __launch_bounds__(1024) add_partials(float* to, const float* partials, int rows, int width) {
    __shared__ float parts[32][33];
    int from = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (from < width) {
#pragma unroll 4
        for (int row = threadIdx.y; row < rows; row += 32) sum += partials[(i64)row * width + from];
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = warp_sum(parts[threadIdx.x][threadIdx.y]);
    int place = blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && place < width) to[place] += sum;
}
