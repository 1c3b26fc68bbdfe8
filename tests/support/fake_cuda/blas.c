// cuBLAS and cuBLASLt without a device, built as libcublas.so.13 with -DBLAS and as libcublasLt.so.13 with -DBLAS_LT:
// products are only written down, in the journal of runtime.c. The symbols have C's linkage, so their arguments need not
// be declared where they are not read.

#include <stdio.h>
#include <string.h>

extern void fake_cuda_queued(const char *kind, const char *detail);
extern int fake_cuda_broken(void);

#define BROKEN_STATUS 13 // CUBLAS_STATUS_EXECUTION_FAILED
#define STATUS (fake_cuda_broken() ? BROKEN_STATUS : 0)
#define QUIET(name) int name(void) { return STATUS; }
#define CREATES(name) int name(void **made) { static long next = 0x90000; *made = (void *)(next += 16); return STATUS; }
#define PRODUCT(name) int name(void) { if (!STATUS) fake_cuda_queued("product", #name); return STATUS; }

#ifdef BLAS
CREATES(cublasCreate_v2)
QUIET(cublasDestroy_v2)
QUIET(cublasSetMathMode)
QUIET(cublasSetStream_v2)
PRODUCT(cublasDgeam)
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasDgetrfBatched)
PRODUCT(cublasDgetriBatched)
PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasScopy_v2)
PRODUCT(cublasSgeam)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgetrfBatched)
PRODUCT(cublasSgetriBatched)
PRODUCT(cublasSscal_v2)

int cublasGetMathMode(void *handle, int *mode) {
    (void)handle;
    *mode = 0;
    return STATUS;
}

const char *cublasGetStatusName(int status) { return status ? "CUBLAS_STATUS_EXECUTION_FAILED" : "CUBLAS_STATUS_SUCCESS"; }
const char *cublasGetStatusString(int status) { return cublasGetStatusName(status); }

int cublasGemmEx(void *handle, int a, int b, int m, int n, int k, const void *alpha, const void *left, int left_type,
                 int left_stride, const void *right, int right_type, int right_stride, const void *beta, void *product,
                 int product_type, int product_stride, int compute_type, int algorithm) {
    (void)handle, (void)a, (void)b, (void)alpha, (void)left, (void)left_stride, (void)right, (void)right_type;
    (void)right_stride, (void)beta, (void)product, (void)product_stride, (void)algorithm;
    char text[160];
    snprintf(text, sizeof text, "cublasGemmEx m %d n %d k %d type %d to %d in %d", m, n, k, left_type, product_type,
             compute_type);
    if (!STATUS) fake_cuda_queued("product", text);
    return STATUS;
}
#endif

#ifdef BLAS_LT
CREATES(cublasLtCreate)
QUIET(cublasLtDestroy)
QUIET(cublasLtMatmulAlgoConfigSetAttribute)
QUIET(cublasLtMatmulAlgoInit)
CREATES(cublasLtMatmulDescCreate)
QUIET(cublasLtMatmulDescDestroy)
QUIET(cublasLtMatmulDescSetAttribute)
CREATES(cublasLtMatmulPreferenceCreate)
QUIET(cublasLtMatmulPreferenceDestroy)
QUIET(cublasLtMatmulPreferenceSetAttribute)
CREATES(cublasLtMatrixLayoutCreate)
QUIET(cublasLtMatrixLayoutDestroy)
QUIET(cublasLtMatrixLayoutSetAttribute)
CREATES(cublasLtMatrixTransformDescCreate)
QUIET(cublasLtMatrixTransformDescDestroy)
PRODUCT(cublasLtMatmul)
PRODUCT(cublasLtMatrixTransform)

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int most, void *results, int *found) {
    (void)handle, (void)operation, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)most;
    memset(results, 0, 64);
    *found = 1;
    return STATUS;
}
#endif
