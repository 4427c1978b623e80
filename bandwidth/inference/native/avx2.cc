// Products for AVX2 with FMA.

#include "avx2.h"

#include "kernels.h"
#include "products.h"

namespace bandwidth {

const Kernels& Avx2Kernels() {
  static const Kernels kernels = KernelsOf<Eight>("avx2");
  return kernels;
}

}  // namespace bandwidth
