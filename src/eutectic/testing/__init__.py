"""For authors of methods and sources, and for tests: the contracts that ours pass, and tiny real checkpoints."""

from eutectic.testing.checkpoints import check_source as check_source
from eutectic.testing.checkpoints import tiny_llama as tiny_llama
from eutectic.testing.checkpoints import write_safetensors as write_safetensors
from eutectic.testing.checkpoints import write_statistics as write_statistics
from eutectic.testing.contract import PROPERTIES as PROPERTIES
from eutectic.testing.contract import ContractError as ContractError
from eutectic.testing.contract import Subject as Subject
from eutectic.testing.contract import check_method as check_method
from eutectic.testing.contract import contract as contract
