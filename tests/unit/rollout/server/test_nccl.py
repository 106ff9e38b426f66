"""Transfer over NCCL as far as it can be shown without a GPU: who can use it, and what vLLM's own engine reads."""

import json
import subprocess

from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.rollout.server.nccl import invitation, is_usable
from ds_stage2ab.rollout.server.weight_sync import usable_transfers
from tests.vllm_process import PYTHON

READ = """
import json, sys
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo, NCCLWeightTransferUpdateInfo
told = json.load(sys.stdin)
init = NCCLWeightTransferInitInfo(**told["init"])
update = NCCLWeightTransferUpdateInfo(**told["update"])
print(json.dumps([init.nccl_unique_id_bytes.hex(), init.rank_offset, init.world_size, init.packed, update.names]))
"""


def test_vllm_reads_what_its_workers_are_told():
    group_id = bytes(range(128))
    update = {"names": ["lm_head.weight"], "dtype_names": ["bfloat16"], "shapes": [[8, 4]]}
    told = json.dumps({"init": invitation(group_id, 3), "update": update})
    done = subprocess.run(
        [str(PYTHON), "-c", READ], input=told, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [group_id.hex(), 1, 3, False, ["lm_head.weight"]]


def test_a_learner_without_a_gpu_cannot_send_over_nccl():
    assert not is_usable("cpu")
    assert usable_transfers("cpu") == (GLOO_TRANSFER,)
