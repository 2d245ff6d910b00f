//! Implements [`Engine`] with CTranslate2. No other file names the crate ct2rs.

use std::path::Path;
use std::sync::Arc;

use ct2rs::sys::{
    ComputeType as Ct2ComputeType, Config, Device as Ct2Device, GenerationOptions, GenerationStepResult, Generator,
    get_device_count,
};
use pillion_protocol::frame::Options;

use super::call::{Call, Engine, EngineFailed, NewToken};
use crate::config::{ComputeType, DeviceChoice, FlagError};
use crate::model::{Model, ModelError};

/// The most candidates that CTranslate2's top-p kernel for CUDA takes.
const CUDA_TOP_P_CANDIDATES: u32 = 8192;

/// The package on PyPI with the cuBLAS that this build opens at run time.
const CUBLAS: &str = if PROCESSOR { "nvidia-cublas-cu12" } else { "nvidia-cublas==13.*" };

const NO_DEVICE: &str = "there is no CUDA device, or its driver is too old";

/// Whether this build has kernels for the processor: CTranslate2 built from source has none.
const PROCESSOR: bool = cfg!(feature = "ready-made");

/// Why a model did not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device does not take a flag's value.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// The device is not available.
    #[error("{0}")]
    Device(String),
    /// A GPU is there, but a library or a kernel that it computes with is not.
    #[error("{0}")]
    Unusable(String),
    /// The engine does not take the model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A device that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The CUDA device of this number.
    Cuda(u32),
}

impl Device {
    /// Chooses the device for the user's flags.
    ///
    /// # Errors
    /// The device is not available, or no device has this number.
    pub fn choose(choice: DeviceChoice, index: u32) -> Result<Self, LoadError> {
        Self::of(PROCESSOR, u32::try_from(get_device_count(Ct2Device::CUDA)).unwrap_or(0), choice, index)
    }

    /// Chooses as [`Device::choose`] does. `processor` says whether the build has kernels for the processor, `devices` is the
    /// number of CUDA devices.
    fn of(processor: bool, devices: u32, choice: DeviceChoice, index: u32) -> Result<Self, LoadError> {
        match choice {
            DeviceChoice::Cuda if devices == 0 => {
                Err(LoadError::Device(format!("--device cuda is not available: {NO_DEVICE}")))
            }
            DeviceChoice::Cuda | DeviceChoice::Auto if devices > 0 => {
                if index < devices {
                    Ok(Self::Cuda(index))
                } else {
                    let allowed = format!("0 to {}, the CUDA devices of this machine", devices - 1);
                    Err(FlagError::refused("--device-index", &index.to_string(), &allowed).into())
                }
            }
            DeviceChoice::Cpu if !processor => Err(LoadError::Device(
                "--device cpu is not available: this pillion-worker was built without the processor's kernels"
                    .to_owned(),
            )),
            DeviceChoice::Auto if !processor => Err(LoadError::Device(format!(
                "--device auto finds no device: {NO_DEVICE}, and this pillion-worker was built without the processor's \
                 kernels"
            ))),
            _ if index != 0 => {
                Err(FlagError::refused("--device-index", &index.to_string(), "0 when computing on the processor")
                    .into())
            }
            DeviceChoice::Auto => {
                tracing::info!("--device auto: computing on the processor, since {NO_DEVICE}");
                Ok(Self::Cpu)
            }
            _ => Ok(Self::Cpu),
        }
    }

    /// The device to use if this one turns out not to work: the processor, unless the user asked for this device.
    pub fn instead(self, choice: DeviceChoice) -> Option<Self> {
        (self != Self::Cpu && choice == DeviceChoice::Auto && PROCESSOR).then_some(Self::Cpu)
    }

    /// The most candidates that top-p sampling may choose from.
    pub fn top_p_candidates(self) -> u32 {
        match self {
            Self::Cpu => u32::MAX,
            Self::Cuda(_) => CUDA_TOP_P_CANDIDATES,
        }
    }
}

/// A model loaded by CTranslate2, once for each slot.
pub struct Ct2 {
    generator: Generator,
    vocabulary: Arc<Vec<String>>,
    ends: Vec<String>,
}

/// How to load a model.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The device.
    pub device: Device,
    /// The arithmetic.
    pub compute_type: ComputeType,
    /// Copies of the model, and so calls that run at once.
    pub slots: u32,
}

impl Ct2 {
    /// Loads a model with `threads` processor threads for each slot. `vocabulary` is the model's own, shared between loads.
    ///
    /// # Errors
    /// The device lacks the arithmetic or the memory, or CTranslate2 does not take the model.
    pub fn load(
        model: &Model,
        vocabulary: &Arc<Vec<String>>,
        setting: Setting,
        threads: usize,
    ) -> Result<Self, LoadError> {
        let (device, index) = match setting.device {
            Device::Cpu => (Ct2Device::CPU, 0),
            Device::Cuda(index) => (Ct2Device::CUDA, i32::try_from(index).unwrap_or(0)),
        };
        let config = Config {
            device,
            compute_type: compute_type(setting.compute_type),
            device_indices: (0..setting.slots).map(|_| index).collect(),
            num_threads_per_replica: threads,
            ..Config::default()
        };
        let generator = Generator::new(&model.directory, &config)
            .map_err(|error| explain(&error.to_string(), &model.directory, setting))?;
        let ends = model.ends.iter().filter_map(|&id| vocabulary.get(usize::try_from(id).ok()?).cloned()).collect();
        Ok(Self { generator, vocabulary: Arc::clone(vocabulary), ends })
    }

    fn token(&self, id: u32) -> Result<&str, EngineFailed> {
        let token = usize::try_from(id).ok().and_then(|id| self.vocabulary.get(id));
        token.map(String::as_str).ok_or_else(|| EngineFailed::Other(format!("there is no token {id}")))
    }
}

impl Engine for Ct2 {
    fn generate(
        &self,
        call: &Call<'_>,
        on_token: &mut (dyn FnMut(NewToken) -> bool + Send),
    ) -> Result<(), EngineFailed> {
        let prompts = call
            .prompts
            .iter()
            .map(|prompt| prompt.iter().map(|&id| self.token(id)).collect::<Result<Vec<&str>, _>>())
            .collect::<Result<Vec<_>, _>>()?;
        let mut callback = |result: GenerationStepResult| {
            on_token(NewToken {
                step: result.step as u64,
                member: result.batch_id,
                // The vocabulary has fewer than 2^32 entries, so an id beyond that is treated like any unknown id.
                id: u32::try_from(result.token_id).unwrap_or(u32::MAX),
            })
        };
        let result = self.generator.generate_batch(&prompts, &options(call, &self.ends), Some(&mut callback));
        result.map(drop).map_err(|error| failed(error.to_string()))
    }
}

/// Parts of the messages for too little memory: of CTranslate2's CUDA allocators, cuBLAS, its allocator on a processor, C++.
const NO_MEMORY: [&str; 4] = ["out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "failed to allocate", "bad_alloc"];

/// Parts of the messages for a GPU that cannot be used: cuBLAS, which the first matrix product opens, is missing, or the card is
/// too old for the kernels.
const NO_CUDA: [&str; 3] = ["libcublas", "no kernel image", "CUBLAS_STATUS_NOT_INITIALIZED"];

fn says(message: &str, words: &[&str]) -> bool {
    words.iter().any(|words| message.contains(words))
}

fn failed(message: String) -> EngineFailed {
    if says(&message, &NO_MEMORY) {
        EngineFailed::OutOfMemory(message)
    } else if says(&message, &NO_CUDA) {
        EngineFailed::Device(message)
    } else {
        EngineFailed::Other(message)
    }
}

/// The message for a GPU that is there but cannot be used.
pub fn unusable(message: &str) -> String {
    format!(
        "the GPU cannot be used: {message} (if cuBLAS is missing: pip install {CUBLAS}, and set LD_LIBRARY_PATH to its folder)"
    )
}

/// A call's options. If the prompt were part of the result, CTranslate2 would not feed it in bulk.
fn options(call: &Call<'_>, ends: &[String]) -> GenerationOptions<String, String, String> {
    let Options { sampling_topk, sampling_topp, sampling_temperature, repetition_penalty, no_repeat_ngram_size } =
        call.options;
    GenerationOptions {
        beam_size: 1,
        max_length: call.most as usize,
        min_length: call.least as usize,
        sampling_topk: sampling_topk as usize,
        sampling_topp,
        sampling_temperature,
        repetition_penalty,
        no_repeat_ngram_size: no_repeat_ngram_size as usize,
        include_prompt_in_result: false,
        end_token: ends.to_vec(),
        return_end_token: false,
        cache_static_prompt: false,
        max_batch_size: 0,
        ..GenerationOptions::default()
    }
}

fn compute_type(compute_type: ComputeType) -> Ct2ComputeType {
    match compute_type {
        ComputeType::Default => Ct2ComputeType::DEFAULT,
        ComputeType::Auto => Ct2ComputeType::AUTO,
        ComputeType::Float32 => Ct2ComputeType::FLOAT32,
        ComputeType::Float16 => Ct2ComputeType::FLOAT16,
        ComputeType::Bfloat16 => Ct2ComputeType::BFLOAT16,
        ComputeType::Int16 => Ct2ComputeType::INT16,
        ComputeType::Int8 => Ct2ComputeType::INT8,
        ComputeType::Int8Float32 => Ct2ComputeType::INT8_FLOAT32,
        ComputeType::Int8Float16 => Ct2ComputeType::INT8_FLOAT16,
        ComputeType::Int8Bfloat16 => Ct2ComputeType::INT8_BFLOAT16,
    }
}

/// Explains CTranslate2's message to the user who started the worker.
fn explain(message: &str, directory: &Path, setting: Setting) -> LoadError {
    let message = message.trim();
    if message.contains("compute type") {
        let flag = setting.compute_type.to_string();
        return FlagError::refused("--compute-type", &flag, &format!("a type that this device supports ({message})"))
            .into();
    }
    if matches!(setting.device, Device::Cuda(_)) {
        // With too little memory the processor must not take over: the memory may be free again in a moment.
        if says(message, &NO_CUDA) && !says(message, &NO_MEMORY) {
            return LoadError::Unusable(unusable(message));
        }
        if says(message, &["CUDA", "cuBLAS", "CUBLAS", "libcu", "out of memory"]) {
            return LoadError::Device(format!("the CUDA device is not available: {message}"));
        }
    }
    ModelError::new(directory, format!("is not a model that CTranslate2 takes: {message}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_that_was_asked_for_is_chosen_if_it_is_there() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        for (processor, devices, choice, index, device) in [
            (true, 0, Auto, 0, Device::Cpu),
            (true, 0, Cpu, 0, Device::Cpu),
            (true, 2, Auto, 1, Device::Cuda(1)),
            (true, 2, Cpu, 0, Device::Cpu),
            (false, 1, Auto, 0, Device::Cuda(0)),
            (false, 2, Cuda, 1, Device::Cuda(1)),
        ] {
            assert_eq!(Device::of(processor, devices, choice, index).unwrap(), device, "{devices} {choice:?}");
        }
        assert_eq!(Device::choose(Cpu, 0).is_ok(), PROCESSOR);
    }

    #[test]
    fn a_device_that_is_missing_is_refused_with_the_reason() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        for (processor, devices, choice, reason) in [
            (true, 0, Cuda, "its driver is too old"),
            (false, 1, Cpu, "was built without the processor's kernels"),
            (false, 0, Auto, "was built without the processor's kernels"),
        ] {
            let error = Device::of(processor, devices, choice, 0).unwrap_err();
            assert!(matches!(error, LoadError::Device(_)) && error.to_string().ends_with(reason), "{error}");
        }
        for (devices, choice) in [(0, Cpu), (1, Cuda), (1, Auto)] {
            assert!(matches!(Device::of(true, devices, choice, 1).unwrap_err(), LoadError::Flag(_)));
        }
    }

    #[test]
    fn the_processor_replaces_a_gpu_that_the_user_did_not_ask_for() {
        assert_eq!(Device::Cuda(0).instead(DeviceChoice::Auto).is_some(), PROCESSOR);
        assert_eq!(Device::Cuda(0).instead(DeviceChoice::Cuda), None);
        assert_eq!(Device::Cpu.instead(DeviceChoice::Auto), None);
    }

    #[test]
    fn too_little_memory_is_recognised() {
        for message in
            ["CUDA failed with error out of memory", "aligned_alloc: failed to allocate memory", "std::bad_alloc"]
        {
            assert!(matches!(failed(message.to_owned()), EngineFailed::OutOfMemory(_)), "{message}");
        }
        let no_cublas = "Library libcublas.so.12 is not found or cannot be loaded".to_owned();
        assert!(matches!(failed(no_cublas), EngineFailed::Device(_)));
        assert!(matches!(failed("no position encodings are defined".to_owned()), EngineFailed::Other(_)));
    }

    #[test]
    fn a_gpu_without_memory_for_the_model_is_still_usable() {
        let setting = Setting { device: Device::Cuda(0), compute_type: ComputeType::Default, slots: 1 };
        let explained = |message| explain(message, Path::new("/m"), setting);
        assert!(matches!(explained("CUDA failed with error out of memory"), LoadError::Device(_)));
        assert!(matches!(explained("CUDA failed with error no kernel image is available"), LoadError::Unusable(_)));
        assert!(matches!(explained("Library libcublas.so.12 is not found"), LoadError::Unusable(_)));
        assert!(matches!(explained("unsupported model"), LoadError::Model(_)));
    }

    #[test]
    fn a_refused_compute_type_names_the_flag() {
        let setting = Setting { device: Device::Cpu, compute_type: ComputeType::Int8Float16, slots: 1 };
        let message = "Requested int8_float16 compute type, but the target device or backend do not support it.";
        let error = explain(message, Path::new("/m"), setting);
        assert!(error.to_string().starts_with("--compute-type does not take \"int8_float16\""), "{error}");
    }
}
