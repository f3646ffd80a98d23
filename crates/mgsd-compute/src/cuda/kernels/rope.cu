// Rotates pairs (j, j + half) of every head in place by the angle of the token. direction -1: back.
// x: [tokens, heads * 2 * half]; cos, sin: [tokens, half]. Four pairs a thread.
extern "C" __global__ void rotate(T* x, const float* cosines, const float* sines, int tokens, int heads, int half, float direction) {
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    int quarters = half / 4;
    i64 total = (i64)tokens * heads * quarters;
    if (index >= total) return;
    int j = (int)(index % quarters) * 4;
    i64 head = index / quarters;
    i64 token = head / heads;
    T* low = x + head * 2 * half + j;
    Four a = load4(low), b = load4(low + half);
    Four c = load4(cosines + token * half + j), s = load4(sines + token * half + j);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x0 = a.x[i], x1 = b.x[i], turn = direction * s.x[i];
        a.x[i] = x0 * c.x[i] - x1 * turn;
        b.x[i] = x1 * c.x[i] + x0 * turn;
    }
    store4(low, a);
    store4(low + half, b);
}
