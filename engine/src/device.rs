//! Devices by the names that users type.

use burn::tensor::Device;
use kiln_registry::{Error, Result};

/// Opens a device: `cpu`; `cuda`, the first NVIDIA GPU; or `cuda:N`, counted from 0.
///
/// # Errors
/// [`Error::InvalidInput`] for another name, or a GPU that the machine doesn't have;
/// [`Error::Unsupported`] for `cuda` in a build without the feature of that name, and where the
/// driver, the run-time compiler (NVRTC) or its headers are missing.
pub fn open_device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::flex());
    }
    match gpu_index(name) {
        Some(index) => cuda::open(name, index),
        None => Err(Error::invalid(format_args!(
            "no device is called `{name}`: choose `cpu`, `cuda` or `cuda:N`"
        ))),
    }
}

/// The `N` of `cuda:N`, 0 for `cuda`.
fn gpu_index(name: &str) -> Option<usize> {
    match name.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{Device, Error, Result};

    pub(super) fn open(name: &str, _index: usize) -> Result<Device> {
        Err(Error::unsupported(format_args!(
            "the device `{name}`: build with `--features cuda`"
        )))
    }
}

/// Burn panics, some of it on threads of its own, where a part of CUDA is missing; so each part
/// is looked for first.
#[cfg(feature = "cuda")]
mod cuda {
    use super::{Device, Error, Result};
    use cubecl::cuda::install;
    use cudarc::{
        driver::{self, CudaContext, DriverError},
        nvrtc,
    };

    #[cfg(not(windows))]
    const DRIVER: &str = "libcuda.so.1";
    #[cfg(windows)]
    const DRIVER: &str = "nvcuda.dll";
    #[cfg(not(windows))]
    const NVRTC: &str = "libnvrtc.so";
    #[cfg(windows)]
    const NVRTC: &str = "nvrtc64_*.dll";
    /// One of the headers that compiled kernels include.
    const HEADER: &str = "cuda_fp16.h";

    pub(super) fn open(name: &str, index: usize) -> Result<Device> {
        let missing = |what: String| Error::unsupported(format!("the device `{name}`: {what}"));
        let gpus = gpus().map_err(missing)?;
        if index >= gpus {
            return Err(Error::invalid(format_args!(
                "the device `{name}`: the NVIDIA driver shows {gpus} GPU(s), counted from 0 \
                 (CUDA_VISIBLE_DEVICES may hide others)"
            )));
        }
        compiler().map_err(missing)?;
        Ok(Device::cuda(index))
    }

    /// How many GPUs the driver shows.
    fn gpus() -> Result<usize, String> {
        // SAFETY: loads a library by the name that NVIDIA's driver has, and drops it; nothing in
        // it is called.
        if !unsafe { driver::sys::is_culib_present() } {
            return Err(format!(
                "no NVIDIA driver: the system's loader finds no `{DRIVER}`. Install the driver \
                 (start a container with `--gpus all`), or choose `cpu`"
            ));
        }
        let says = |error: DriverError| {
            let text = error
                .error_string()
                .map(|s| s.to_string_lossy().into_owned());
            format!(
                "the NVIDIA driver answers {:?} ({}): `nvidia-smi` should list the GPU; or choose \
                 `cpu`",
                error.0,
                text.unwrap_or_default()
            )
        };
        let count = CudaContext::device_count().map_err(says)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Kernels are compiled when they first run: is there what that takes?
    fn compiler() -> Result<(), String> {
        // SAFETY: as above, for NVIDIA's run-time compiler.
        if !unsafe { nvrtc::sys::is_culib_present() } {
            return Err(format!(
                "no NVRTC, which compiles kernels: the system's loader finds no `{NVRTC}`. \
                 Install the CUDA toolkit, or name its library folder in {}",
                if cfg!(windows) {
                    "PATH"
                } else {
                    "LD_LIBRARY_PATH"
                }
            ));
        }
        let root = install::cuda_path()
            .ok_or("no CUDA headers: name the toolkit's folder in CUDA_PATH")?;
        let header = root.join("include").join(HEADER);
        if !header.exists() {
            return Err(format!(
                "no CUDA headers: there is no `{}`. Name the toolkit's folder in CUDA_PATH",
                header.display()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(open_device("cpu").unwrap(), Device::flex());
        assert_eq!(gpu_index("cuda"), Some(0));
        assert_eq!(gpu_index("cuda:3"), Some(3));
        for name in [
            "", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda0", "CUDA",
        ] {
            let error = open_device(name).unwrap_err();
            assert!(matches!(error, Error::InvalidInput(_)), "{name}: {error}");
            assert!(error.to_string().contains("`cuda:N`"), "{name}: {error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_names_the_feature() {
        let error = open_device("cuda:1").unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
        assert!(
            error
                .to_string()
                .contains("`cuda:1`: build with `--features cuda`"),
            "{error}"
        );
    }

    /// With a driver or without: no machine has this one.
    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let error = open_device("cuda:4096").unwrap_err();
        assert!(error.to_string().contains("`cuda:4096`: "), "{error}");
    }
}
