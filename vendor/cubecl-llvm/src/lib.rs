//! Stands in for CubeCL's LLVM compiler, so that `--features cuda` builds from crates.io alone.
//!
//! `cubecl-cuda` carries two compilers: CUDA C++ handed to NVRTC, and LLVM. It depends on both
//! whichever one a build selects, and the build script of the real `cubecl-llvm` downloads an
//! LLVM distribution. Kiln selects NVRTC (`cubecl/cuda-cpp`), so all it needs of the other
//! compiler is its types. They are here, without the compiler: none of them holds anything, and
//! [`PlironCompiler`] refuses every kernel, saying which feature is missing.
//!
//! The root manifest puts this crate in place with `[patch.crates-io]`. It can go when
//! `cubecl-cuda` makes its dependency on `cubecl-llvm` optional. A new CubeCL version needs the
//! same version number here; cargo says so ("patch was not used").

use cubecl_core::prelude::KernelDefinition;
use cubecl_core::{CompilationError, Compiler};
use cubecl_environment::backtrace::BackTrace;
use std::convert::Infallible;
use std::fmt;

pub use module::NvptxModule;

/// What the CUDA runtime asks about PTX, the assembly that LLVM would emit.
pub mod nvptx {
    /// The version of the PTX that LLVM would emit.
    pub mod ptx_version {
        use std::fmt;

        /// A PTX version. There is no LLVM, so there is none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The version for a CUDA driver: none.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the CUDA runtime asks about a device's features.
pub mod shared {
    /// The features that LLVM would leave a device.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The kind of GPU that features would be restricted for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// An NVIDIA GPU.
            Nvptx,
        }

        /// Leaves the features alone: no kernel gets as far as using one.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

mod module {
    use cubecl_core::ir::attributes::BufferIOAttr;
    use std::convert::Infallible;
    use std::ffi::c_char;

    /// A compiled kernel. There is no compiler, so no value of it exists.
    #[derive(Clone, Debug)]
    pub struct NvptxModule {
        /// The PTX, ending in NUL.
        pub ptx: Vec<c_char>,
        /// The kernel's symbol.
        pub entrypoint: String,
        /// The text for logs and for the key in caches.
        pub ir: String,
        /// Shared memory that a launch reserves, in bytes.
        pub shared_memory_size: usize,
        /// What the kernel does with each buffer.
        pub io: Vec<BufferIOAttr>,
        // Keeps the promise that no value exists.
        _none: Infallible,
    }
}

/// What LLVM would compile for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA GPUs.
    #[default]
    Nvptx,
}

/// How LLVM would compile. Nothing reads it.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// An AMD architecture: none.
    pub arch: Option<Infallible>,
    /// The NVIDIA architecture.
    pub sm_arch: Option<cubecl_core::ir::nvidia::SmArch>,
    /// The PTX version: none.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether scalars travel in the kernel's parameter block.
    pub grid_constants: bool,
}

/// What a compiler hands back. No value of it exists.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// Code for an NVIDIA GPU.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlironArtifact::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

/// The compiler that isn't there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM: enable `cubecl/cuda-cpp`, which compiles kernels \
                     with NVRTC"
                .to_owned(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
