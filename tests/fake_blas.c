/* Stand-ins for BLAS libraries, one a build: Q4_FAKE_BLAS_SLOW is right but slow and says nothing of itself,
 * Q4_FAKE_BLAS_WRONG multiplies nothing, Q4_FAKE_BLAS_NETLIB also has the variables of netlib's C interface, and
 * Q4_FAKE_BLAS_CONFIG is the text of OpenBLAS's configuration. */

void cblas_sgemm(int order, int a_as, int b_as, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  (void)order, (void)a_as, (void)b_as, (void)alpha, (void)beta;
  for (int row = 0; row < m; ++row)
    for (int col = 0; col < n; ++col) {
      volatile float sum = 0; /* one addition at a time, through memory */
#ifndef Q4_FAKE_BLAS_WRONG
      for (int i = 0; i < k; ++i) sum = sum + a[row * lda + i] * b[i * ldb + col];
#else
      (void)a, (void)lda, (void)b, (void)ldb, (void)k;
#endif
      c[row * ldc + col] = sum;
    }
}

#ifdef Q4_FAKE_BLAS_NETLIB
int CBLAS_CallFromC = 0, RowMajorStrg = 0;
#endif
#ifdef Q4_FAKE_BLAS_CONFIG
const char* openblas_get_config(void);
const char* openblas_get_config(void) { return Q4_FAKE_BLAS_CONFIG; }
#endif
