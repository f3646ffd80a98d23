// Rows of a table by token id.
extern "C" __global__ void forward(T* out, const T* table, const u32* ids, int width) {
    i64 row = blockIdx.x, source = ids[row];
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8)
        store8(out + row * width + at, load8(table + source * width + at));
}

// dtable[id] += sum of dout over the rows order[starts[i] .. starts[i + 1]], which all have the id of block i.
extern "C" __global__ void backward(float* dtable, const T* dout, const u32* ids, const u32* order, const u32* starts, int width) {
    u32 first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    i64 id = ids[order[first]];
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8) {
        Eight sum = load8(dtable + id * width + at);
        for (u32 place = first; place < last; place++) {
            Eight v = load8(dout + (i64)order[place] * width + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] += v.x[i];
        }
        store8(dtable + id * width + at, sum);
    }
}
