// Products for AVX-512 with BW, VL, DQ, VBMI and VNNI.

#include "avx512.h"

#include "kernels.h"
#include "products.h"

namespace bandwidth {

const Kernels& Avx512Kernels() { return KernelsOf<Sixteen>("avx512"); }

}  // namespace bandwidth
