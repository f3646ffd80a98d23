// Rows by number.
extern "C" __global__ void gather(T* out, const T* x, const u32* index, int width) {
    i64 row = blockIdx.x, source = index[row];
    if (width % 8 != 0) {
        for (int at = threadIdx.x; at < width; at += blockDim.x) out[row * width + at] = x[source * width + at];
        return;
    }
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8)
        store8(out + row * width + at, load8(x + source * width + at));
}

extern "C" __global__ void scatter(T* out, const T* x, const u32* index, int width, int add) {
    i64 row = blockIdx.x, target = index[row];
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8) {
        Eight v = load8(x + row * width + at);
        if (add) {
            Eight old = load8(out + target * width + at);
#pragma unroll
            for (int i = 0; i < 8; i++) v.x[i] += old.x[i];
        }
        store8(out + target * width + at, v);
    }
}

// to[row, to_start + j] = from[row, from_start + j] for j < width; strides in numbers, all multiples of eight.
extern "C" __global__ void copy_columns(
    T* to, const T* from, int rows, int width, int to_stride, int to_start, int from_stride, int from_start) {
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    int pieces = width / 8;
    if (index >= (i64)rows * pieces) return;
    i64 row = index / pieces;
    int at = (int)(index % pieces) * 8;
    store8(to + row * to_stride + to_start + at, load8(from + row * from_stride + from_start + at));
}
