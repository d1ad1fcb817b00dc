"""Pull-back metrics of generators, and what is measured with them: speed, length, energy, fields (eqs 1-4, App. E).

:class:`PullbackMetric` (in `pullback`, eqs 1-4) is the paper's; :class:`ExplicitMetric`, :class:`ConformalMetric` and
``metric_a + metric_b`` are for metrics that come from elsewhere. All answer the same questions (:class:`Metric`, in
`base`), for any number of points in bounded memory: points are processed in chunks (`batching`).
"""

from lgi.metric.base import Metric
from lgi.metric.explicit import ConformalMetric, ExplicitMetric
from lgi.metric.fields import MetricFields, metric_fields
from lgi.metric.generators import FeatureMap, Generator
from lgi.metric.lengths import Curve, curve_energy, curve_length, slerp
from lgi.metric.pullback import PullbackMetric

__all__ = [
    "ConformalMetric",
    "Curve",
    "ExplicitMetric",
    "FeatureMap",
    "Generator",
    "Metric",
    "MetricFields",
    "PullbackMetric",
    "curve_energy",
    "curve_length",
    "metric_fields",
    "slerp",
]
