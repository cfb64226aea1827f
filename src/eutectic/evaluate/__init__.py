"""Is a merge good? Source → score: tasks behind one small protocol, on checkpoints and on merges never written."""

from eutectic.evaluate.cache import Cache as Cache
from eutectic.evaluate.call import Call as Call
from eutectic.evaluate.choice import Choice as Choice
from eutectic.evaluate.classification import Classification as Classification
from eutectic.evaluate.codes import CODES as CODES
from eutectic.evaluate.doors import evaluate as evaluate
from eutectic.evaluate.doors import evaluate_models as evaluate_models
from eutectic.evaluate.evaluation import Evaluation as Evaluation
from eutectic.evaluate.evaluation import evaluate_all as evaluate_all
from eutectic.evaluate.evaluation import measure as measure
from eutectic.evaluate.exact_match import ExactMatch as ExactMatch
from eutectic.evaluate.harness import Harness as Harness
from eutectic.evaluate.loading import LiveSource as LiveSource
from eutectic.evaluate.loading import Loader as Loader
from eutectic.evaluate.model import Difference as Difference
from eutectic.evaluate.model import Score as Score
from eutectic.evaluate.model import Settings as Settings
from eutectic.evaluate.model import Task as Task
from eutectic.evaluate.model import paired as paired
from eutectic.evaluate.model import score_of as score_of
from eutectic.evaluate.perplexity import Perplexity as Perplexity
from eutectic.evaluate.similarity import Similarity as Similarity
from eutectic.evaluate.taskfile import task_of as task_of
