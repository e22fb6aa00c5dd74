//! The conformance kit over every linked model, on each fixture checkpoint, in every layout of its
//! weights.

use kiln_conformance::conforms;

conforms!(llava_clip_llama, "fixtures/checkpoints/llava-clip-llama");
conforms!(
    llava_clip_llama_hub,
    "fixtures/checkpoints/llava-clip-llama-hub"
);
conforms!(
    llava_clip_llama_module,
    "fixtures/checkpoints/llava-clip-llama-module"
);
conforms!(
    llava_clip_llama_sharded,
    "fixtures/checkpoints/llava-clip-llama-sharded"
);
conforms!(
    llava_clip_mistral,
    "fixtures/checkpoints/llava-clip-mistral"
);
conforms!(llava_clip_qwen2, "fixtures/checkpoints/llava-clip-qwen2");
conforms!(
    llava_siglip_llama,
    "fixtures/checkpoints/llava-siglip-llama"
);
conforms!(
    llava_siglip_mistral,
    "fixtures/checkpoints/llava-siglip-mistral"
);
conforms!(
    llava_siglip_qwen2,
    "fixtures/checkpoints/llava-siglip-qwen2"
);
conforms!(
    llava_next_clip_mistral,
    "fixtures/checkpoints/llava-next-clip-mistral"
);
conforms!(
    llava_next_siglip_qwen2,
    "fixtures/checkpoints/llava-next-siglip-qwen2"
);
conforms!(text_llama, "fixtures/checkpoints/text-llama");
conforms!(text_mistral, "fixtures/checkpoints/text-mistral");
conforms!(text_qwen2, "fixtures/checkpoints/text-qwen2");
