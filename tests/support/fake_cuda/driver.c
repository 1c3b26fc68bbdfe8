// NVIDIA's driver and cuRAND without a device, built as libcuda.so.1 and libcurand.so.10: the provider needs the files to
// load, and one symbol.

int cuInit(unsigned flags) {
    (void)flags;
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}

int cuTensorMapEncodeTiled(void) { return 0; }
