// Products for AVX2 with FMA.

#include "avx2.h"

#include "kernels.h"
#include "products.h"

namespace bandwidth {

const Kernels& Avx2Kernels() { return KernelsOf<Eight>("avx2"); }

}  // namespace bandwidth
