"""The parts of the trainer, one concern a file.

arguments   argument keys config translate machine utils errors
data        records tokens pool dataset packing collator; preference (DPO)
prompt      prompt template template_registry vocabulary
model       resolve minicpm checkpoint model lora neftune unsloth
training    trainer attention loss evenly speed dpo
watching    callbacks monitor watch curves samples evaluation finite
saving      saving manifest exact resume reshard lock
estimate    estimate simulate cards advice report
merging     adapter merge merge_check qlora_merge; exports: gguf_export gguf_vocab modelfile
inference   inference session generate serving client results rows; http_api http_batch http_stream http_protocol http_guard listening; web web_models
evaluation  eval_folder eval_records eval_measure eval_losses heldout bootstrap scores leakage; eval_text eval_plots eval_page
judging     judging judge_client binomial script_io; lm-eval: lm_eval_run lm_eval_data lm_eval_report
"""

import logging

# On a CPU bitsandbytes speaks, at import, of an optional kernel that nobody here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
