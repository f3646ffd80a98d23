// out = silu(gate) * up, eight numbers a thread; n is a multiple of eight.
extern "C" __global__ void forward(T* out, const T* gate, const T* up, i64 n) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= n) return;
    Eight g = load8(gate + at), u = load8(up + at);
#pragma unroll
    for (int i = 0; i < 8; i++) u.x[i] *= g.x[i] * sigmoid(g.x[i]);
    store8(out + at, u);
}

// `again`, if it is there, receives what `forward` gave.
extern "C" __global__ void backward(T* dgate, T* dup, T* again, const T* dout, const T* gate, const T* up, i64 n) {
    i64 at = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= n) return;
    Eight g = load8(gate + at), u = load8(up + at), d = load8(dout + at), y;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float s = sigmoid(g.x[i]), silu = g.x[i] * s;
        y.x[i] = u.x[i] * silu;
        float slope = s + silu * (1.0f - s);
        g.x[i] = d.x[i] * u.x[i] * slope;
        u.x[i] = d.x[i] * silu;
    }
    store8(dgate + at, g);
    store8(dup + at, u);
    if (again) store8(again + at, y);
}
