// Does nothing: the driver is asked how many clusters of it run at the same time.
extern "C" __global__ void cluster() {}
