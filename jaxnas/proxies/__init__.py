"""Zero-cost proxies: scores of untrained networks, thousands at once. One score, one file."""

from types import MappingProxyType

from jaxnas.proxies.candidate import Candidate as Candidate
from jaxnas.proxies.candidate import Proxy as Proxy
from jaxnas.proxies.epe_nas import epe_nas as epe_nas
from jaxnas.proxies.fisher import fisher as fisher
from jaxnas.proxies.flops import flops as flops
from jaxnas.proxies.grad_norm import grad_norm as grad_norm
from jaxnas.proxies.grasp import grasp as grasp
from jaxnas.proxies.jacob_cov import jacob_cov as jacob_cov
from jaxnas.proxies.l2_norm import l2_norm as l2_norm
from jaxnas.proxies.naswot import naswot as naswot
from jaxnas.proxies.ntk import ntk as ntk
from jaxnas.proxies.parameters import parameters as parameters
from jaxnas.proxies.plain import plain as plain
from jaxnas.proxies.snip import snip as snip
from jaxnas.proxies.synflow import synflow as synflow
from jaxnas.proxies.zen import zen as zen

ALL = MappingProxyType(
    {
        "epe_nas": epe_nas,
        "fisher": fisher,
        "flops": flops,
        "grad_norm": grad_norm,
        "grasp": grasp,
        "jacob_cov": jacob_cov,
        "l2_norm": l2_norm,
        "naswot": naswot,
        "ntk": ntk,
        "parameters": parameters,
        "plain": plain,
        "snip": snip,
        "synflow": synflow,
        "zen": zen,
    }
)

# Below `ALL`, which they read.
from jaxnas.proxies.frame import features as features  # noqa: E402
from jaxnas.proxies.frame import resolve as resolve  # noqa: E402
from jaxnas.proxies.frame import score as score  # noqa: E402
from jaxnas.proxies.population import score_population as score_population  # noqa: E402
from jaxnas.proxies.population import scorer as scorer  # noqa: E402
from jaxnas.proxies.recording import recorded as recorded  # noqa: E402
from jaxnas.proxies.vote import vote as vote  # noqa: E402
from jaxnas.proxies.warm_start import best_drawn as best_drawn  # noqa: E402
from jaxnas.proxies.warm_start import warm_start as warm_start  # noqa: E402
