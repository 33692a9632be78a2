/* A BLAS that takes a given time for each row: cblas_sgemm, row-major, as the CPU backend calls it. The time is
   $Q4_SLOW_BLAS_US microseconds a row. */
#include <stdlib.h>
#include <unistd.h>

const char* openblas_get_config(void) { return "slow test BLAS"; }

void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  const char* us = getenv("Q4_SLOW_BLAS_US");
  (void)order, (void)trans_a, (void)trans_b, (void)alpha, (void)beta;
  for (int row = 0; row < m; ++row) {
    if (us) usleep((useconds_t)atoi(us));
    for (int col = 0; col < n; ++col) c[row * ldc + col] = 0;
    for (int i = 0; i < k; ++i)
      for (int col = 0; col < n; ++col) c[row * ldc + col] += a[row * lda + i] * b[i * ldb + col];
  }
}
